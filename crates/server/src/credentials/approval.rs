//! The rule of two: a cutoff of a whole realm takes effect when a second credential confirms it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use revocast_core::{RealmId, UnixTime};

/// How long what one credential asks for waits for a second.
pub const APPROVAL_TIME: Duration = Duration::from_mins(10);

/// What became of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Approval {
    /// It waits for another credential.
    Waiting {
        /// What shall be.
        not_before: UnixTime,
        /// Who asked first.
        asked_by: String,
        /// Until when somebody else can confirm it.
        until: UnixTime,
    },
    /// A second one confirmed it: do it.
    Given {
        /// What shall be.
        not_before: UnixTime,
        /// Who asked first.
        asked_by: String,
    },
    /// Another time waits already; confirm that one, or let it lapse.
    Differs {
        /// What waits.
        not_before: UnixTime,
        /// Until when.
        until: UnixTime,
    },
}

/// What waits, one for each realm. In memory only: after a restart it is asked for again.
#[derive(Debug, Default)]
pub(super) struct Approvals(Mutex<BTreeMap<RealmId, Waiting>>);

#[derive(Clone, Debug)]
struct Waiting {
    not_before: UnixTime,
    asked_by: String,
    until: UnixTime,
}

impl Approvals {
    /// Asks for a cutoff of a whole realm, or confirms the one that waits.
    ///
    /// Without a time whoever comes second confirms the first one's. Bounded by the number of realms, since
    /// only realms that exist are asked for.
    pub(super) fn ask(&self, now: UnixTime, realm: RealmId, asked: Option<UnixTime>, by: &str) -> Approval {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, one| now < one.until);
        match waiting.get(&realm).cloned() {
            Some(Waiting { not_before, until, .. }) if asked.is_some_and(|asked| asked != not_before) => {
                Approval::Differs { not_before, until }
            }
            Some(Waiting { not_before, asked_by, until }) if asked_by == by => {
                Approval::Waiting { not_before, asked_by, until }
            }
            Some(Waiting { not_before, asked_by, .. }) => {
                waiting.remove(&realm);
                Approval::Given { not_before, asked_by }
            }
            None => {
                // As in a cutoff at once: every token issued by now (design rule 16).
                let not_before = asked.unwrap_or_else(|| now.plus(1));
                let until = now.plus(APPROVAL_TIME.as_secs());
                waiting.insert(realm, Waiting { not_before, asked_by: by.to_owned(), until });
                Approval::Waiting { not_before, asked_by: by.to_owned(), until }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_somebody_else_confirms_and_only_in_time() {
        let approvals = Approvals::default();
        let realm = RealmId::new("fleet").unwrap();
        let at = |secs: u64| UnixTime::from_secs(1_000 + secs);
        let ask = |secs, asked, by: &str| approvals.ask(at(secs), realm, asked, by);
        let waiting = Approval::Waiting { not_before: at(1), asked_by: "a".into(), until: at(600) };
        assert_eq!(ask(0, None, "a"), waiting);
        assert_eq!(ask(5, None, "a"), waiting, "nobody confirms their own");
        assert_eq!(ask(6, Some(at(7)), "b"), Approval::Differs { not_before: at(1), until: at(600) });
        assert_eq!(ask(8, Some(at(1)), "b"), Approval::Given { not_before: at(1), asked_by: "a".into() });
        // It is used up.
        assert!(matches!(ask(9, None, "b"), Approval::Waiting { asked_by, .. } if asked_by == "b"));
        // Too late: it begins anew.
        assert!(matches!(ask(9 + 600, None, "a"), Approval::Waiting { asked_by, .. } if asked_by == "a"));
    }
}
