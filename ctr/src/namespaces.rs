//! `ctr namespaces`: the store's namespaces and their labels.

use api::containerd::services::namespaces::v1::{ListNamespacesRequest, Namespace};

use crate::client::Client;
use crate::error::Error;
use crate::table::{self, Layout, Table};

pub(crate) async fn list(client: &Client) -> Result<Vec<Namespace>, Error> {
    let request = client.request(ListNamespacesRequest::default());
    Ok(client.namespaces().list(request).await?.into_inner().namespaces)
}

pub(crate) fn names(namespaces: &[Namespace]) -> String {
    table::names(namespaces.iter().map(|namespace| namespace.name.as_str()))
}

pub(crate) fn table(namespaces: &[Namespace]) -> String {
    let mut table = Table::new(Layout::NARROW, &["NAME", "LABELS"]);
    for namespace in namespaces {
        table.row(vec![namespace.name.clone(), table::labels(&namespace.labels)]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_without_labels_leaves_the_cell_blank() {
        let labelled = Namespace { name: "k8s.io".into(), labels: [("a".into(), "b".into())].into() };
        let bare = Namespace { name: "default".into(), labels: [].into() };
        assert_eq!(table(&[bare.clone(), labelled.clone()]), "NAME    LABELS \ndefault        \nk8s.io  a=b    \n");
        assert_eq!(names(&[bare, labelled]), "default\nk8s.io\n");
    }
}
