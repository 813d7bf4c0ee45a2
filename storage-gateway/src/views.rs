//! An export as its users see it: one view each, those used last kept, so that connections and remembered handles last.

use std::sync::Arc;

use crate::export::{Export, User};

/// Users whose view of one export is kept; each remembers up to a few megabytes of handles.
const USERS_MAX: usize = 16;

/// See the module.
#[derive(Default)]
pub struct Views {
    /// The one used last at the end.
    kept: Vec<(User, Arc<dyn Export>)>,
}

impl Views {
    /// The user's view of `export`; the export itself where it knows no users.
    pub fn of(&mut self, export: &Arc<dyn Export>, user: &User) -> Arc<dyn Export> {
        if let Some(at) = self.kept.iter().position(|(kept, _)| kept == user) {
            let found = self.kept.remove(at);
            let view = Arc::clone(&found.1);
            self.kept.push(found);
            return view;
        }
        let Some(view) = export.as_user(user) else { return Arc::clone(export) };
        if self.kept.len() >= USERS_MAX {
            self.kept.remove(0);
        }
        self.kept.push((user.clone(), Arc::clone(&view)));
        view
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::local::LocalExport;
    use crate::export::nfs::{NfsExport, NfsOptions};

    #[test]
    fn a_view_lasts_while_it_is_used() {
        let export: Arc<dyn Export> = Arc::new(NfsExport::new("nfs://nas/x", &NfsOptions::default()).unwrap());
        let user = |uid| User { uid, gid: 5, groups: Vec::new() };
        let mut views = Views::default();
        let (first, idle) = (views.of(&export, &user(1)), views.of(&export, &user(2)));
        assert_eq!(first.user(), Some(user(1)));
        for uid in 3..100 {
            views.of(&export, &user(uid));
            assert!(Arc::ptr_eq(&first, &views.of(&export, &user(1))), "it is used again and again");
            assert!(views.kept.len() <= USERS_MAX);
        }
        assert!(!Arc::ptr_eq(&idle, &views.of(&export, &user(2))), "nobody used it for long");
    }

    #[test]
    fn a_directory_of_this_machine_is_the_same_for_all() {
        let dir = tempfile::tempdir().unwrap();
        let export: Arc<dyn Export> = Arc::new(LocalExport::open(dir.path(), false).unwrap());
        let user = User { uid: 1, gid: 1, groups: Vec::new() };
        assert!(Arc::ptr_eq(&export, &Views::default().of(&export, &user)));
    }
}
