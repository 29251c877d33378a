//! What to do with a verdict.
//!
//! Core says what it knows; here it is decided what that means for the token at hand. The two
//! answers in the middle are where safety is lost if somebody rounds them, so each has a rule of its
//! own, and nothing is decided by a wildcard.

use revocast_core::{Doubt, Verdict, Why};

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
}

impl Reason {
    /// The name used in logs, metrics and JSON.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Revoked { .. } => "revoked",
            Self::Suspect => "suspect",
            Self::Unknown { .. } => "unknown",
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
}

impl Policy {
    /// Asks about suspects, denies whatever is unknown.
    #[must_use]
    pub const fn strict() -> Self {
        Self {
            suspect: Rule::Ask,
            no_state: Rule::Deny,
            stale: Rule::Deny,
            time_unknown: Rule::Deny,
            overflow: Rule::Deny,
            not_followed: Rule::Deny,
        }
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

    /// Decides.
    pub const fn decide(&self, verdict: &Verdict) -> Decision {
        match verdict {
            Verdict::NotRevoked { .. } => Decision::Accept,
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        assert_eq!(strict.decide(&Verdict::NotRevoked { at: Position::default() }), Decision::Accept);
        assert_eq!(
            strict.decide(&Verdict::Revoked { why: Why::Token }),
            Decision::Deny { reason: Reason::Revoked { why: Why::Token } }
        );
        let suspect = strict.decide(&Verdict::Suspect { false_positive_rate: 0.01 });
        assert_eq!(suspect, Decision::Ask { reason: Reason::Suspect });
        assert_eq!(suspect.unanswered(), Decision::Deny { reason: Reason::Suspect });
        for doubt in DOUBTS {
            let decision = strict.decide(&Verdict::Unknown { doubt });
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
                let accepted = policy.decide(&Verdict::Unknown { doubt }) == Decision::Accept;
                assert_eq!(accepted, place == other, "{doubt:?}");
            }
            assert_ne!(policy.decide(&Verdict::Revoked { why: Why::Token }), Decision::Accept);
        }
        let open = Policy::strict().on_suspect(Rule::Accept);
        assert_eq!(open.decide(&Verdict::Suspect { false_positive_rate: 0.5 }), Decision::Accept);
    }
}
