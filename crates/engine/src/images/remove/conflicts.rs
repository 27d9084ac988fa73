//! What prevents the removal of an image.

use super::references::References;
use super::{Force, ImageUser};
use crate::error::{Error, Result};
use crate::images::Image;

/// A removal of an image, or of some of its references.
pub(super) struct Removal<'a> {
    pub(super) image: &'a Image,
    /// The name that was given.
    pub(super) name: &'a str,
    /// All references of the image.
    pub(super) all: &'a References,
    /// The references that the name selects; `None` for an id, which selects the image.
    pub(super) selected: Option<&'a References>,
    pub(super) users: &'a [ImageUser],
    /// The containers that use images which are removed with it.
    pub(super) others: &'a [ImageUser],
    /// Another tag stands for the image, too.
    pub(super) is_needed: bool,
}

impl Removal<'_> {
    /// Returns whether it removes the image's last references.
    pub(super) fn is_last(&self) -> bool {
        self.selected.is_none_or(|selected| {
            !self.is_needed
                && (&selected.tags, &selected.digests) == (&self.all.tags, &self.all.digests)
        })
    }

    /// Checks that the image can be removed. The conflicts are checked in Docker's order: those that
    /// cannot be forced come first.
    pub(super) fn check_conflicts(&self, force: Force) -> Result<()> {
        let short = &self.image.id.hex()[..12];
        let user = |running: bool| {
            let mut users = self.users.iter().chain(self.others);
            let user = users.find(|user| user.is_running == running);
            user.map(|user| &user.container[..12])
        };
        let conflict = |text: String| Err(Error::conflict(format!("conflict: unable to {text}")));
        let is_forced = force == Force::All;
        if self.selected.is_some() {
            let is_last = self.is_last() || !self.all.are_several();
            let own = self.users.first().filter(|_| is_last);
            let user = own.or(self.others.first());
            return match user.filter(|_| !is_forced) {
                Some(user) => conflict(format!(
                    "remove repository reference {:?} (must force) - container {} is using its referenced image {short}",
                    self.name,
                    &user.container[..12]
                )),
                None => Ok(()),
            };
        }
        if let Some(user) = user(true) {
            return conflict(format!(
                "delete {short} (cannot be forced) - image is being used by running container {user}"
            ));
        }
        if self.all.are_several() && force == Force::Nothing {
            return conflict(format!(
                "delete {short} (must be forced) - image is referenced in multiple repositories"
            ));
        }
        match user(false).filter(|_| !is_forced) {
            Some(user) => conflict(format!(
                "delete {short} (must be forced) - image is being used by stopped container {user}"
            )),
            None => Ok(()),
        }
    }
}
