//! A snapshotter that says what it is about to do, and so can be held there.

use std::sync::{Arc, Condvar, Mutex};

use snapshotter::{Error, Info, Labels, Mount, Snapshotter, Usage};
use store::Namespace;

use crate::node::{Setup, eventually};

/// Called before each call, with its name.
type Hook = Arc<dyn Fn(&'static str) + Send + Sync>;

struct Hooked {
    inner: Arc<dyn Snapshotter>,
    hook: Hook,
}

pub(crate) fn hooked(hook: impl Fn(&'static str) + Send + Sync + 'static) -> Setup {
    let hook: Hook = Arc::new(hook);
    let wrap = move |inner| Arc::new(Hooked { inner, hook: Arc::clone(&hook) }) as Arc<dyn Snapshotter>;
    Setup { wrap: Some(Arc::new(wrap)), ..Setup::default() }
}

/// A call that waits while the door is shut. Clones are the same door.
#[derive(Clone, Default)]
pub(crate) struct Door {
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    is_shut: bool,
    waiting: usize,
}

impl Door {
    pub(crate) fn pass(&self) {
        let (state, opened) = &*self.state;
        let mut state = state.lock().unwrap();
        state.waiting += 1;
        while state.is_shut {
            state = opened.wait(state).unwrap();
        }
        state.waiting -= 1;
    }

    pub(crate) fn shut(&self) {
        self.state.0.lock().unwrap().is_shut = true;
    }

    pub(crate) fn open(&self) {
        self.state.0.lock().unwrap().is_shut = false;
        self.state.1.notify_all();
    }

    pub(crate) async fn somebody_waits(&self) {
        eventually("somebody waits at the door", || self.state.0.lock().unwrap().waiting > 0).await;
    }
}

type Mounts = Result<Vec<Mount>, Error>;

impl Snapshotter for Hooked {
    fn stat(&self, ns: &Namespace, key: &str) -> Result<Info, Error> {
        (self.hook)("stat");
        self.inner.stat(ns, key)
    }

    fn list(&self, ns: &Namespace) -> Result<Vec<Info>, Error> {
        (self.hook)("list");
        self.inner.list(ns)
    }

    fn prepare(&self, ns: &Namespace, key: &str, parent: Option<&str>, labels: &Labels) -> Mounts {
        (self.hook)("prepare");
        self.inner.prepare(ns, key, parent, labels)
    }

    fn can_rebase(&self) -> bool {
        self.inner.can_rebase()
    }

    fn rebase(&self, ns: &Namespace, key: &str, parent: &str) -> Mounts {
        (self.hook)("rebase");
        self.inner.rebase(ns, key, parent)
    }

    fn view(&self, ns: &Namespace, key: &str, parent: Option<&str>, labels: &Labels) -> Mounts {
        (self.hook)("view");
        self.inner.view(ns, key, parent, labels)
    }

    fn mounts(&self, ns: &Namespace, key: &str) -> Mounts {
        (self.hook)("mounts");
        self.inner.mounts(ns, key)
    }

    fn commit(&self, ns: &Namespace, name: &str, key: &str, labels: &Labels) -> Result<(), Error> {
        (self.hook)("commit");
        self.inner.commit(ns, name, key, labels)
    }

    fn remove(&self, ns: &Namespace, key: &str) -> Result<(), Error> {
        (self.hook)("remove");
        self.inner.remove(ns, key)
    }

    fn discard(&self, ns: &Namespace, key: &str) -> Result<(), Error> {
        (self.hook)("discard");
        self.inner.discard(ns, key)
    }

    fn empty_trash(&self) -> Result<(), Error> {
        (self.hook)("empty_trash");
        self.inner.empty_trash()
    }

    fn usage(&self, ns: &Namespace, key: &str) -> Result<Usage, Error> {
        (self.hook)("usage");
        self.inner.usage(ns, key)
    }

    fn total(&self, ns: &Namespace) -> Result<Usage, Error> {
        (self.hook)("total");
        self.inner.total(ns)
    }

    fn mark_durable(&self) -> Result<usize, Error> {
        (self.hook)("mark_durable");
        self.inner.mark_durable()
    }
}
