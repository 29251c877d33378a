//! What to do with a verdict.
//!
//! Core says what it knows; here it is decided what that means for the token at hand. The two
//! answers in the middle are where safety is lost if somebody rounds them, so each has a rule of its
//! own, and nothing is decided by a wildcard.
//!
//! Age has two limits. Beyond the hard one, the staleness that a replica allows (a day unless
//! configured), there is no "not revoked" at all. Beyond the soft one, which belongs to a policy, a
//! "not revoked" is *aging*, and a rule of its own applies:
//!
//! | | up to the soft limit (15 minutes) | up to the hard limit (24 hours) | beyond |
//! | --- | --- | --- | --- |
//! | [`Policy::strict`] | accept | ask; deny when nobody answers | deny |
//! | [`Policy::routine`] | accept | accept | deny |
//!
//! Everything else is the same in both: deny what is revoked, ask about suspects, deny the unknown.
//! An application that does more and less dangerous things gives each class of operation a policy of
//! its own ([`Policies`]).

use std::time::Duration;

use revocast_core::{Doubt, Verdict, Why};

/// The soft limit unless configured: thirty heartbeats of a server with default settings.
pub const AGING_AFTER: Duration = Duration::from_mins(15);

/// Classes of operations that one validator may tell apart. They are looked for one by one.
pub const CLASSES_MAX: usize = 64;

/// What to do with a token.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use = "a decision that nobody looks at accepts every token"]
pub enum Decision {
    /// Honor it.
    Accept,
    /// Do not honor it.
    Deny {
        /// Why not.
        reason: Reason,
    },
    /// Ask the server; without an answer, deny.
    Ask {
        /// What is not known here.
        reason: Reason,
    },
}

impl Decision {
    /// The decision where nobody can be asked, or nobody answered.
    pub const fn unanswered(self) -> Self {
        match self {
            Self::Accept => Self::Accept,
            Self::Deny { reason } | Self::Ask { reason } => Self::Deny { reason },
        }
    }

    /// The name used in logs, metrics and JSON.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Deny { .. } => "deny",
            Self::Ask { .. } => "ask",
        }
    }
}

/// Why a token is not simply accepted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// It is revoked.
    Revoked {
        /// What revoked it.
        why: Why,
    },
    /// The filter matches, and nothing exact is at hand.
    Suspect,
    /// The device cannot say.
    Unknown {
        /// Why not.
        doubt: Doubt,
    },
    /// It was not revoked when last heard of, which is longer ago than the policy likes.
    Aging {
        /// How long.
        age: Duration,
    },
}

impl Reason {
    /// The name used in logs, metrics and JSON.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Revoked { .. } => "revoked",
            Self::Suspect => "suspect",
            Self::Unknown { .. } => "unknown",
            Self::Aging { .. } => "aging",
        }
    }
}

/// What to do where the answer is neither yes nor no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Fail open: honor the token.
    Accept,
    /// Fail closed.
    Deny,
    /// Ask the server, and fail closed without an answer.
    Ask,
}

/// Turns verdicts into decisions.
///
/// There is no default: begin with [`Policy::strict`] and relax what the application can afford, one
/// doubt at a time. Nothing relaxes "revoked".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    suspect: Rule,
    no_state: Rule,
    stale: Rule,
    time_unknown: Rule,
    overflow: Rule,
    not_followed: Rule,
    aging: Rule,
    aging_after: Duration,
}

impl Policy {
    /// Asks about suspects and about what has not been heard of for 15 minutes, denies whatever is
    /// unknown. For what opens doors.
    #[must_use]
    pub const fn strict() -> Self {
        Self {
            suspect: Rule::Ask,
            no_state: Rule::Deny,
            stale: Rule::Deny,
            time_unknown: Rule::Deny,
            overflow: Rule::Deny,
            not_followed: Rule::Deny,
            aging: Rule::Ask,
            aging_after: AGING_AFTER,
        }
    }

    /// As strict, but lives with an aging answer up to the hard limit. For what can be undone.
    #[must_use]
    pub const fn routine() -> Self {
        Self::strict().on_aging(Rule::Accept)
    }

    /// What to do with a token that is not revoked as of a time beyond the soft limit.
    #[must_use]
    pub const fn on_aging(mut self, rule: Rule) -> Self {
        self.aging = rule;
        self
    }

    /// Another soft limit than 15 minutes. The hard one is the replica's, and stays.
    #[must_use]
    pub const fn aging_after(mut self, limit: Duration) -> Self {
        self.aging_after = limit;
        self
    }

    /// What to do when the filter matches and nothing exact is at hand.
    #[must_use]
    pub const fn on_suspect(mut self, rule: Rule) -> Self {
        self.suspect = rule;
        self
    }

    /// What to do before anything has been fetched.
    #[must_use]
    pub const fn on_no_state(mut self, rule: Rule) -> Self {
        self.no_state = rule;
        self
    }

    /// What to do when the last proof of currency is too old.
    #[must_use]
    pub const fn on_stale(mut self, rule: Rule) -> Self {
        self.stale = rule;
        self
    }

    /// What to do when the clock contradicts what was signed.
    #[must_use]
    pub const fn on_time_unknown(mut self, rule: Rule) -> Self {
        self.time_unknown = rule;
        self
    }

    /// What to do when a revocation did not fit.
    #[must_use]
    pub const fn on_overflow(mut self, rule: Rule) -> Self {
        self.overflow = rule;
        self
    }

    /// What to do with tokens of a realm that is not followed.
    #[must_use]
    pub const fn on_not_followed(mut self, rule: Rule) -> Self {
        self.not_followed = rule;
        self
    }

    /// Decides. `age` is that of the set that gave the verdict; `None` if its source does not age.
    pub fn decide(&self, verdict: &Verdict, age: Option<Duration>) -> Decision {
        match verdict {
            Verdict::NotRevoked { .. } => match age.filter(|age| *age > self.aging_after) {
                Some(age) => apply(self.aging, Reason::Aging { age }),
                None => Decision::Accept,
            },
            Verdict::Revoked { why } => Decision::Deny { reason: Reason::Revoked { why: *why } },
            Verdict::Suspect { .. } => apply(self.suspect, Reason::Suspect),
            Verdict::Unknown { doubt } => {
                let rule = match doubt {
                    Doubt::NoState => self.no_state,
                    Doubt::Stale { .. } => self.stale,
                    Doubt::TimeUnknown => self.time_unknown,
                    Doubt::Overflow => self.overflow,
                    Doubt::NotFollowed => self.not_followed,
                };
                apply(rule, Reason::Unknown { doubt: *doubt })
            }
        }
    }
}

const fn apply(rule: Rule, reason: Reason) -> Decision {
    match rule {
        Rule::Accept => Decision::Accept,
        Rule::Deny => Decision::Deny { reason },
        Rule::Ask => Decision::Ask { reason },
    }
}

/// A policy for each class of operation: unlocking a door needs more than reading a thermometer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policies {
    default: Policy,
    classes: Vec<(Box<str>, Policy)>,
}

impl Policies {
    /// One policy for everything.
    #[must_use]
    pub const fn new(default: Policy) -> Self {
        Self { default, classes: Vec::new() }
    }

    /// Another policy for one class; named twice, the last one counts. At most [`CLASSES_MAX`].
    #[must_use]
    pub fn with(mut self, class: &str, policy: Policy) -> Self {
        match self.classes.iter_mut().find(|(name, _)| **name == *class) {
            Some((_, held)) => *held = policy,
            None => self.classes.push((class.into(), policy)),
        }
        self
    }

    /// The policy of a class; the default one if it has none of its own.
    #[must_use]
    pub fn of(&self, class: &str) -> &Policy {
        self.classes.iter().find(|(name, _)| **name == *class).map_or(&self.default, |(_, policy)| policy)
    }

    /// The policy of operations without a class.
    #[must_use]
    pub const fn default_policy(&self) -> &Policy {
        &self.default
    }

    /// How many classes have a policy of their own.
    #[must_use]
    pub const fn classes(&self) -> usize {
        self.classes.len()
    }
}

impl From<Policy> for Policies {
    fn from(policy: Policy) -> Self {
        Self::new(policy)
    }
}

#[cfg(test)]
mod tests {
    use revocast_core::Position;

    use super::*;

    const DOUBTS: [Doubt; 5] = [
        Doubt::NoState,
        Doubt::Stale { age: Duration::from_secs(1) },
        Doubt::TimeUnknown,
        Doubt::Overflow,
        Doubt::NotFollowed,
    ];

    #[test]
    fn strict_accepts_only_what_is_known_to_be_good() {
        let strict = Policy::strict();
        assert_eq!(strict.decide(&Verdict::NotRevoked { at: Position::default() }, None), Decision::Accept);
        assert_eq!(
            strict.decide(&Verdict::Revoked { why: Why::Token }, None),
            Decision::Deny { reason: Reason::Revoked { why: Why::Token } }
        );
        let suspect = strict.decide(&Verdict::Suspect { false_positive_rate: 0.01 }, None);
        assert_eq!(suspect, Decision::Ask { reason: Reason::Suspect });
        assert_eq!(suspect.unanswered(), Decision::Deny { reason: Reason::Suspect });
        for doubt in DOUBTS {
            let decision = strict.decide(&Verdict::Unknown { doubt }, None);
            assert_eq!(decision, Decision::Deny { reason: Reason::Unknown { doubt } });
        }
    }

    #[test]
    fn each_relaxation_concerns_one_doubt_and_never_a_revocation() {
        let relaxed: [fn(Policy, Rule) -> Policy; 5] = [
            Policy::on_no_state,
            Policy::on_stale,
            Policy::on_time_unknown,
            Policy::on_overflow,
            Policy::on_not_followed,
        ];
        for (place, relax) in relaxed.iter().enumerate() {
            let policy = relax(Policy::strict(), Rule::Accept);
            for (other, doubt) in DOUBTS.into_iter().enumerate() {
                let accepted = policy.decide(&Verdict::Unknown { doubt }, None) == Decision::Accept;
                assert_eq!(accepted, place == other, "{doubt:?}");
            }
            assert_ne!(policy.decide(&Verdict::Revoked { why: Why::Token }, None), Decision::Accept);
        }
        let open = Policy::strict().on_suspect(Rule::Accept);
        assert_eq!(open.decide(&Verdict::Suspect { false_positive_rate: 0.5 }, None), Decision::Accept);
    }

    #[test]
    fn an_aging_answer_is_asked_about_where_it_matters_and_accepted_in_routine() {
        let good = Verdict::NotRevoked { at: Position::default() };
        let minutes = |minutes| Some(Duration::from_mins(minutes));
        let (strict, routine) = (Policy::strict(), Policy::routine());
        for policy in [strict, routine] {
            assert_eq!(policy.decide(&good, None), Decision::Accept);
            assert_eq!(policy.decide(&good, minutes(15)), Decision::Accept);
        }
        let reason = Reason::Aging { age: Duration::from_mins(16) };
        assert_eq!(strict.decide(&good, minutes(16)), Decision::Ask { reason });
        assert_eq!(strict.decide(&good, minutes(16)).unanswered(), Decision::Deny { reason });
        assert_eq!(routine.decide(&good, minutes(16)), Decision::Accept);
        // Beyond the hard limit there is no "not revoked" to be lenient with, and age softens nothing else.
        let stale = Verdict::Unknown { doubt: Doubt::Stale { age: Duration::from_hours(25) } };
        let (revoked, suspect) = (Verdict::Revoked { why: Why::Token }, Verdict::Suspect { false_positive_rate: 0.1 });
        for age in [None, minutes(0), minutes(16), minutes(25 * 60)] {
            assert!(matches!(routine.decide(&stale, age), Decision::Deny { .. }));
            assert!(matches!(routine.decide(&revoked, age), Decision::Deny { .. }));
            assert_eq!(routine.decide(&suspect, age), Decision::Ask { reason: Reason::Suspect });
        }
        let hasty = strict.aging_after(Duration::from_mins(1)).on_aging(Rule::Deny);
        assert!(matches!(hasty.decide(&good, minutes(2)), Decision::Deny { reason: Reason::Aging { .. } }));
        assert_eq!(hasty.decide(&good, minutes(1)), Decision::Accept);
    }

    #[test]
    fn a_class_has_its_own_policy_and_an_unknown_one_the_default() {
        let lax = Policy::routine().on_suspect(Rule::Accept);
        let policies = Policies::new(lax).with("unlock", Policy::routine()).with("unlock", Policy::strict());
        assert_eq!((policies.of("unlock"), policies.classes()), (&Policy::strict(), 1));
        for other in ["", "UNLOCK", "unlock ", "read"] {
            assert_eq!(policies.of(other), &lax);
        }
        assert_eq!(Policies::from(lax).of("unlock"), policies.default_policy());
    }
}
