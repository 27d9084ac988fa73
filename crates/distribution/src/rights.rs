//! Access rights of users by repository, from a file with lines `USER ACTIONS REPOSITORIES…`.
//!
//! ```text
//! ann        pull,push,delete  *
//! bob        pull              *             lines add up
//! bob        push              team/bob/*    what is below team/bob
//! *          pull              tools         every user
//! anonymous  pull              public/*      clients without a password
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use crate::auth::Passwords;
use crate::names::RepositoryName;

const MAX_FILE: u64 = 1 << 20;
/// The name of clients without a password.
pub(crate) const ANONYMOUS: &str = "anonymous";
/// Every user, and every repository.
pub(crate) const EVERY: &str = "*";

/// What a request does in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Pull,
    Push,
    Delete,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pull => "pull from",
            Self::Push => "push to",
            Self::Delete => "delete from",
        })
    }
}

/// Who has sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The registry asks nobody for a password.
    Anyone,
    Anonymous,
    User(String),
}

/// The rights of users.
#[derive(Debug)]
pub struct Rights {
    file: Option<PathBuf>,
    rules: Mutex<Arc<Vec<Rule>>>,
}

#[derive(Clone, Debug)]
struct Rule {
    who: Who,
    actions: Vec<Action>,
    repositories: Vec<Pattern>,
}

#[derive(Clone, Debug)]
enum Who {
    Anonymous,
    EveryUser,
    User(String),
}

#[derive(Clone, Debug)]
enum Pattern {
    Every,
    /// Repositories whose names begin with this, which ends with a slash.
    Below(String),
    Only(RepositoryName),
}

impl Rights {
    /// Reads the file.
    ///
    /// # Errors
    /// Returns an error that names the line if the file is malformed.
    pub fn load(file: PathBuf) -> Result<Self, String> {
        Ok(Self {
            rules: Mutex::new(read(&file)?.into()),
            file: Some(file),
        })
    }

    /// Returns rights by which everyone may pull, and every user may do everything.
    pub fn anonymous_pull() -> Self {
        let rule = |who, actions: &[Action]| Rule {
            who,
            actions: actions.to_vec(),
            repositories: vec![Pattern::Every],
        };
        let all = [Action::Pull, Action::Push, Action::Delete];
        let rules = vec![
            rule(Who::EveryUser, &all),
            rule(Who::Anonymous, &[Action::Pull]),
        ];
        Self {
            file: None,
            rules: Mutex::new(rules.into()),
        }
    }

    /// Reads the file again.
    ///
    /// # Errors
    /// See [`Self::load`]; what was read before stays in use.
    pub fn reload(&self) -> Result<(), String> {
        if let Some(file) = &self.file {
            *self.rules.lock().ignore_poison() = read(file)?.into();
        }
        Ok(())
    }

    /// Returns the users that have rules but no password: most likely their names are misspelled.
    pub fn unknown_users(&self, passwords: &Passwords) -> Vec<String> {
        let rules = self.rules();
        let users = rules.iter().filter_map(|rule| match &rule.who {
            Who::User(user) if !passwords.has(user) => Some(user.clone()),
            _ => None,
        });
        users.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn rules(&self) -> Arc<Vec<Rule>> {
        Arc::clone(&self.rules.lock().ignore_poison())
    }

    /// Returns whether there is something that needs no password.
    pub(crate) fn has_anonymous(&self) -> bool {
        let is_anonymous = |rule: &Rule| matches!(rule.who, Who::Anonymous);
        self.rules().iter().any(is_anonymous)
    }

    pub(crate) fn permit(
        &self,
        identity: &Identity,
        action: Action,
        repository: &RepositoryName,
    ) -> bool {
        self.rules().iter().any(|rule| {
            rule.who.is(identity)
                && rule.actions.contains(&action)
                && rule
                    .repositories
                    .iter()
                    .any(|pattern| pattern.is(repository))
        })
    }
}

impl Who {
    fn is(&self, identity: &Identity) -> bool {
        match (self, identity) {
            (_, Identity::Anyone) => true,
            // What needs no password is for users too.
            (Self::Anonymous, _) | (Self::EveryUser, Identity::User(_)) => true,
            (Self::User(own), Identity::User(user)) => own == user,
            (_, Identity::Anonymous) => false,
        }
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, String> {
        if text == EVERY {
            return Ok(Self::Every);
        }
        let (name, is_below) = match text.strip_suffix("/*") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let name = RepositoryName::parse(name)
            .map_err(|_| format!("invalid repository {text:?}: want NAME, NAME/* or *"))?;
        Ok(match is_below {
            true => Self::Below(format!("{name}/")),
            false => Self::Only(name),
        })
    }

    fn is(&self, repository: &RepositoryName) -> bool {
        match self {
            Self::Every => true,
            Self::Below(prefix) => repository.as_str().starts_with(prefix),
            Self::Only(only) => repository == only,
        }
    }
}

fn read(file: &Path) -> Result<Vec<Rule>, String> {
    let content = fs::read_at_most(file, MAX_FILE).map_err(|error| error.to_string())?;
    let shown = file.display();
    let content = String::from_utf8(content).map_err(|_| format!("{shown}: not UTF-8"))?;
    parse(&content).map_err(|error| format!("{shown}: {error}"))
}

fn parse(content: &str) -> Result<Vec<Rule>, String> {
    let mut rules = Vec::new();
    for (number, line) in (1..).zip(content.lines()) {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(who) = words.next() else { continue };
        let at = |error: String| format!("line {number}: {error}");
        let actions = words.next().unwrap_or_default();
        let actions = actions.split(',').map(|action| match action {
            "pull" => Ok(Action::Pull),
            "push" => Ok(Action::Push),
            "delete" => Ok(Action::Delete),
            other => Err(format!(
                "invalid action {other:?}: want WHO pull,push,delete REPOSITORIES"
            )),
        });
        let actions = actions.collect::<Result<_, _>>().map_err(at)?;
        let repositories = words.map(Pattern::parse).collect::<Result<Vec<_>, _>>();
        let repositories = repositories.map_err(at)?;
        if repositories.is_empty() {
            return Err(at("no repositories; * is for all".into()));
        }
        rules.push(Rule {
            who: match who {
                ANONYMOUS => Who::Anonymous,
                EVERY => Who::EveryUser,
                user => Who::User(user.to_owned()),
            },
            actions,
            repositories,
        });
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_add_up() {
        let rules = parse(
            "# rights\n\nann pull,push,delete *\nbob pull * # all\nbob push team/bob/* own\n\
             * pull tools\nanonymous pull public/*\n",
        );
        let rights = Rights {
            file: None,
            rules: Mutex::new(rules.unwrap().into()),
        };
        let user = |name: &str| Identity::User(name.into());
        for (identity, action, repository, expected) in [
            (user("ann"), Action::Delete, "x/y", true),
            (user("bob"), Action::Pull, "x/y", true),
            (user("bob"), Action::Push, "x/y", false),
            (user("bob"), Action::Push, "team/bob/a/b", true),
            (user("bob"), Action::Push, "team/bob", false),
            (user("bob"), Action::Push, "team/bobby/a", false),
            (user("bob"), Action::Push, "own", true),
            (user("bob"), Action::Delete, "own", false),
            (user("eve"), Action::Pull, "tools", true),
            (user("eve"), Action::Pull, "public/a", true),
            (user("eve"), Action::Pull, "x", false),
            (user("anonymous"), Action::Pull, "x", false),
            (Identity::Anonymous, Action::Pull, "public/a", true),
            (Identity::Anonymous, Action::Pull, "tools", false),
            (Identity::Anonymous, Action::Push, "public/a", false),
            (Identity::Anyone, Action::Push, "x", true),
        ] {
            let name = RepositoryName::parse(repository).unwrap();
            let found = rights.permit(&identity, action, &name);
            assert_eq!(found, expected, "{identity:?} {action:?} {repository}");
        }
        assert!(rights.has_anonymous());
        assert!(Rights::anonymous_pull().has_anonymous());
    }

    #[test]
    fn malformed_lines_are_named() {
        for (content, expected) in [
            ("ann", "line 1: invalid action \"\""),
            ("\nann read *", "line 2: invalid action \"read\""),
            ("ann pull,", "line 1: invalid action \"\""),
            ("ann pull", "line 1: no repositories"),
            ("ann pull a*", "line 1: invalid repository \"a*\""),
            ("ann pull ../x", "line 1: invalid repository"),
            ("ann pull */x", "line 1: invalid repository"),
        ] {
            let error = parse(content).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
