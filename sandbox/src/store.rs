//! The rows of pods and containers: one JSON document each, with the columns that are searched beside it.
//!
//! Each function that writes is one transaction. A document of a newer program is refused, not half-read.

use std::collections::BTreeMap;

use ::store::{
    Namespace, Schema, Store,
    rusqlite::{self, Connection, OptionalExtension, params},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Error,
    model::Id,
    record::{ContainerRecord, PodRecord, VERSION},
};

/// The tables of this crate; whoever opens the store hands this in.
pub const SCHEMA: Schema = Schema {
    name: "sandbox",
    migrations: &["
        CREATE TABLE pod (
            namespace TEXT NOT NULL,
            id TEXT NOT NULL,
            name TEXT NOT NULL,
            record TEXT NOT NULL,
            PRIMARY KEY (namespace, id),
            UNIQUE (namespace, name)
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE container (
            namespace TEXT NOT NULL,
            id TEXT NOT NULL,
            pod TEXT NOT NULL,
            record TEXT NOT NULL,
            PRIMARY KEY (namespace, id),
            FOREIGN KEY (namespace, pod) REFERENCES pod (namespace, id) ON DELETE CASCADE
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX container_of_pod ON container (namespace, pod);
    "],
};

/// The rows of one namespace.
#[derive(Clone)]
pub(crate) struct Rows {
    store: Store,
    namespace: Namespace,
}

impl Rows {
    pub(crate) fn new(store: Store, namespace: Namespace) -> Rows {
        Rows { store, namespace }
    }

    /// Writes a pod's row and those of some of its containers.
    pub(crate) async fn put(&self, pod: Option<&PodRecord>, containers: &[&ContainerRecord]) -> Result<(), Error> {
        let namespace = self.namespace.clone();
        let pod = pod.map(|pod| Ok((pod.id.clone(), pod.spec.name.key(), to_json(pod)?))).transpose()?;
        let containers = containers
            .iter()
            .map(|container| Ok((container.id.clone(), container.pod.clone(), to_json(*container)?)))
            .collect::<Result<Vec<_>, Error>>()?;
        self.write("write a pod's rows", move |conn| {
            if let Some((id, name, record)) = pod {
                conn.execute(
                    "INSERT INTO pod (namespace, id, name, record) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (namespace, id) DO UPDATE SET record = excluded.record",
                    params![namespace, id.as_str(), name, record],
                )?;
            }
            for (id, pod, record) in containers {
                conn.execute(
                    "INSERT INTO container (namespace, id, pod, record) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (namespace, id) DO UPDATE SET record = excluded.record",
                    params![namespace, id.as_str(), pod.as_str(), record],
                )?;
            }
            Ok(())
        })
        .await
    }

    /// Forgets a pod and its containers.
    pub(crate) async fn delete_pod(&self, id: &Id) -> Result<(), Error> {
        let (namespace, id) = (self.namespace.clone(), id.clone());
        self.write("delete a pod's rows", move |conn| {
            conn.execute("DELETE FROM pod WHERE namespace = ?1 AND id = ?2", params![namespace, id.as_str()]).map(drop)
        })
        .await
    }

    /// Forgets a container.
    pub(crate) async fn delete_container(&self, id: &Id) -> Result<(), Error> {
        let (namespace, id) = (self.namespace.clone(), id.clone());
        self.write("delete a container's row", move |conn| {
            conn.execute("DELETE FROM container WHERE namespace = ?1 AND id = ?2", params![namespace, id.as_str()])
                .map(drop)
        })
        .await
    }

    /// The record of one pod.
    pub(crate) async fn pod(&self, id: &str) -> Result<Option<PodRecord>, Error> {
        let (namespace, id) = (self.namespace.clone(), id.to_owned());
        let read = move |conn: &Connection| -> Result<Option<String>, ::store::Error> {
            let sql = "SELECT record FROM pod WHERE namespace = ?1 AND id = ?2";
            let mut statement = conn.prepare(sql)?;
            let text = statement.query_row(params![namespace, id], |row| row.get(0)).optional()?;
            Ok(text)
        };
        let text = self.store.read(read).await.map_err(|error| Error::failed("read the row of a pod", error))?;
        text.map(|text| parse(&text)).transpose()
    }

    /// Every pod with its containers, and what could not be read, which is reported and left alone.
    pub(crate) async fn load(&self) -> Result<Loaded, Error> {
        let namespace = self.namespace.clone();
        let read = move |conn: &Connection| -> Result<_, ::store::Error> {
            Ok((texts(conn, "pod", &namespace)?, texts(conn, "container", &namespace)?))
        };
        let (pods, containers) =
            self.store.read(read).await.map_err(|error| Error::failed("read the rows of pods", error))?;
        let mut loaded = Loaded::default();
        for (id, text) in pods {
            match parse::<PodRecord>(&text) {
                Ok(pod) => drop(loaded.pods.insert(pod.id.clone(), (pod, Vec::new()))),
                Err(error) => loaded.unreadable.push((id, error)),
            }
        }
        for (id, text) in containers {
            match parse::<ContainerRecord>(&text) {
                Ok(container) => match loaded.pods.get_mut(&container.pod) {
                    Some((_, containers)) => containers.push(container),
                    // Its pod is among the unreadable.
                    None => loaded.unreadable.push((id, Error::plain("its pod could not be read"))),
                },
                Err(error) => loaded.unreadable.push((id, error)),
            }
        }
        Ok(loaded)
    }

    async fn write(
        &self,
        what: &'static str,
        f: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<(), Error> {
        let written = self.store.write(move |conn| f(conn).map_err(::store::Error::from)).await;
        written.map_err(|error| Error::failed(what, error))
    }
}

/// What the store holds.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) pods: BTreeMap<Id, (PodRecord, Vec<ContainerRecord>)>,
    /// Rows of a newer or a broken program, by id.
    pub(crate) unreadable: Vec<(String, Error)>,
}

fn texts(conn: &Connection, table: &str, namespace: &Namespace) -> Result<Vec<(String, String)>, ::store::Error> {
    let mut statement = conn.prepare(&format!("SELECT id, record FROM {table} WHERE namespace = ?1 ORDER BY id"))?;
    let rows = statement.query_map([namespace], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn to_json(record: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(record).map_err(|error| Error::failed("write a record as JSON", error))
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let failed = |error| Error::failed("parse a record", error);
    let Versioned { version } = serde_json::from_str(text).map_err(failed)?;
    if version > VERSION {
        return Err(Error::plain(format!("its record has version {version}, this program knows up to {VERSION}")));
    }
    serde_json::from_str(text).map_err(failed)
}

#[cfg(test)]
pub(crate) mod tests;
