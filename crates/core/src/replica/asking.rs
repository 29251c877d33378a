//! One question to the server about one token, and what follows from its answer (design rule 21).
//!
//! An answer is believed for a nonce that is open, once. It proves the time; it proves currency to a
//! replica that stands where the answer does (rule 1); and its statement goes into `recent`, stamped
//! with the answer's sequence, so that what a later delta says about the key wins (rule 3).

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use thiserror::Error;

use super::{Action, Replica};
use crate::clock::{Allowance, Now, UnixMillis};
use crate::limits::{ASK_EVERY, ASK_PATIENCE, ASKS_BURST, ASKS_OUTSTANDING_MAX, RECENT_ANSWERS_MAX};
use crate::recent::{Stamped, State};
use crate::refusal::{Rank, Refusal};
use crate::seal::{Kind, seal};
use crate::token::Claims;
use crate::update::{Answer, DeviceId, Finding, Nonce, Question};
use crate::verdict::Why;
use crate::wire::{self, WireError};

/// Why a question was not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unasked {
    /// There is nobody to ask.
    #[error("there is no connection to ask over")]
    NotConnected,
    /// Without the realm's keys no token has a name, and no answer could be believed.
    #[error("the realm's keys are not known yet")]
    NoKeys,
    /// Too many questions wait for their answers.
    #[error("{ASKS_OUTSTANDING_MAX} questions wait for an answer, which is the limit")]
    TooMany,
    /// Questions come faster than a device may ask.
    #[error("more than {ASKS_BURST} questions, then one in {} ms", ASK_EVERY.as_millis())]
    TooFast,
    /// A nonce that stands for another question; the caller's mistake.
    #[error("the nonce is that of a question which is still open")]
    NonceInUse,
    /// Our own mistake: the question cannot be written down.
    #[error("the question cannot be encoded")]
    Encode(#[from] WireError),
}

/// A question without an answer so far.
#[derive(Clone, Copy, Debug)]
struct Open {
    question: Question,
    /// When it was asked, by uptime.
    since: Duration,
}

/// The questions that are open, and what has been found out and not been told yet.
#[derive(Debug, Default)]
pub(super) struct Asking {
    open: Vec<Open>,
    allowance: Allowance,
    found: VecDeque<(Nonce, Option<Finding>)>,
}

impl Asking {
    /// When the first question ends without an answer.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.open.iter().map(|open| open.since + ASK_PATIENCE).min()
    }

    /// Ends every question that has waited long enough.
    pub(super) fn expire(&mut self, uptime: Duration) {
        self.end(|open| open.since + ASK_PATIENCE <= uptime);
    }

    /// Ends every question: no answer can come any more.
    pub(super) fn end_all(&mut self) {
        self.end(|_| true);
    }

    fn end(&mut self, over: impl Fn(&Open) -> bool) {
        let ended = self.open.iter().filter(|open| over(open)).map(|open| (open.question.nonce, None));
        self.found.extend(ended);
        self.open.retain(|open| !over(open));
    }

    /// The open question that an answer fits.
    fn fitting(&self, answer: &Answer) -> Result<Open, Refusal> {
        let open = self
            .open
            .iter()
            .find(|open| open.question.nonce == answer.nonce)
            .ok_or(Refusal::Unasked { what: "the nonce" })?;
        if open.question.device != answer.device {
            return Err(Refusal::Unasked { what: "the device" });
        }
        if open.question.fingerprint != answer.fingerprint {
            return Err(Refusal::Unasked { what: "the fingerprint" });
        }
        Ok(*open)
    }

    fn close(&mut self, nonce: &Nonce, finding: Finding) {
        self.open.retain(|open| open.question.nonce != *nonce);
        self.found.push_back((*nonce, Some(finding)));
    }
}

impl Replica {
    /// Asks the server about one token; [`Action::Answered`] tells what came of it.
    ///
    /// `nonce` must come from a good random source and never be used again: it alone tells an answer
    /// from the replay of an older one. `device` names the topic of the answer.
    pub fn ask(&mut self, now: Now, nonce: Nonce, device: DeviceId, claims: &Claims<'_>) -> Result<(), Unasked> {
        if !self.connected {
            return Err(Unasked::NotConnected);
        }
        let fingerprinter = self.keys.as_ref().map(|held| held.keys.fingerprinter).ok_or(Unasked::NoKeys)?;
        self.asking.expire(now.uptime);
        self.tell_findings();
        if self.asking.open.len() >= ASKS_OUTSTANDING_MAX {
            return Err(Unasked::TooMany);
        }
        if self.asking.open.iter().any(|open| open.question.nonce == nonce) {
            return Err(Unasked::NonceInUse);
        }
        let question = Question::new(device, nonce, &fingerprinter, claims);
        let body = wire::encode_question(&question)?;
        if !self.asking.allowance.take(now.uptime, ASKS_BURST, ASK_EVERY) {
            return Err(Unasked::TooFast);
        }
        self.asking.open.push(Open { question, since: now.uptime });
        let signers: Vec<_> = self.signer.iter().collect();
        self.actions.push_back(Action::Ask(seal(Kind::Ask, &self.realm, &body, &signers)));
        Ok(())
    }

    pub(super) fn on_answer(&mut self, now: Now, bytes: &[u8]) -> Result<(), Refusal> {
        self.asking.expire(now.uptime);
        // It shall prove the time, so this device's own clock must not decide whether it counts: the
        // key is looked at by what is signed, here and in the answer itself.
        let floor = self.set.freshness.floor;
        let (body, _) = self.by_publisher(floor, bytes, Kind::Answer)?;
        let width = self.width();
        let answer = body.try_map(|body| wire::decode_answer(body, width))?.into_inner();
        self.by_publisher(floor.max(answer.issued_at), bytes, Kind::Answer)?;
        let Open { question, since } = self.asking.fitting(&answer)?;
        let held = self.highest_position();
        let offered = Rank { term: answer.term, number: answer.sequence.0, ..Rank::default() };
        if offered < held {
            // Whoever knows less than this replica must not clear a token.
            return Err(Refusal::Rollback { what: "answer", held, offered });
        }
        self.set.freshness.floor = floor.max(answer.issued_at);
        self.raise_horizon(answer.horizon);
        self.prove_time(now, answer.issued_at);
        self.prove_currency(&answer, since);
        // Never against what is known here.
        let finding = match self.set.known_revoked(&question) {
            Some(why) => Finding::Revoked { why },
            None => answer.finding,
        };
        self.record_answer(&answer, finding);
        self.asking.close(&answer.nonce, finding);
        self.dirty.set = true;
        self.dirty.proof = true;
        Ok(())
    }

    /// The highest (term, sequence) of which this replica has heard.
    fn highest_position(&self) -> Rank {
        let position = self.position.unwrap_or_default();
        let named = self.manifest().map(|manifest| (manifest.term, manifest.sequence)).unwrap_or_default();
        let (term, sequence) = position.max(named);
        Rank { term, number: sequence.0, ..Rank::default() }
    }

    /// Rule 2: an answer to one's own nonce proves the time, and uptime carries it from there.
    ///
    /// A wall clock that agrees stays in charge: unlike uptime it does not stand still while a machine
    /// sleeps.
    fn prove_time(&mut self, now: Now, issued_at: UnixMillis) {
        let freshness = &mut self.set.freshness;
        let time = issued_at.max(freshness.floor);
        let skew = freshness.clock_skew;
        let agrees = now.wall.plus(skew) >= time && now.wall <= time.plus(skew + ASK_PATIENCE);
        if freshness.proven.is_some() || !agrees {
            freshness.proven = Some((time, now.uptime));
        }
    }

    /// Rule 1: nothing was missing as of the answer, if this replica stands where it does. Since the
    /// question cannot be later than the answer, age counts from the question.
    fn prove_currency(&mut self, answer: &Answer, asked: Duration) {
        let reached = self.position.is_some_and(|(term, at)| term == answer.term && at >= answer.sequence);
        let newer = self.set.freshness.proof.is_none_or(|(issued_at, _)| issued_at < answer.issued_at);
        if reached && newer {
            self.set.freshness.proof = Some((answer.issued_at, asked));
        }
    }

    /// Keeps what was found as a statement about the key as of the answer's sequence, like one of a
    /// delta that ends there: what later deltas and bases say wins by their stamps. In another term
    /// stamps mean something else.
    fn record_answer(&mut self, answer: &Answer, finding: Finding) {
        let state = match finding {
            Finding::NotRevoked => State::Reinstated,
            Finding::Revoked { why: Why::Token } if answer.finding == finding => State::Revoked,
            // Known here already, or no statement about the key.
            Finding::Revoked { why: Why::Token | Why::Cutoff { .. } | Why::Expired { .. } } => return,
        };
        // What a base covers must not be told from below it: nothing would undo it.
        let above = self.position.is_some_and(|(term, at)| term == answer.term && at <= answer.sequence);
        let most = self.recent_entries_max().min(RECENT_ANSWERS_MAX);
        let recent = &mut self.set.recent;
        let room = recent.holds(answer.fingerprint) || recent.len() < most;
        if above && room {
            // Written down with whatever comes next: a device that asks a lot shall not wear out its flash.
            recent.record(Stamped { fingerprint: answer.fingerprint, stamp: answer.sequence, state });
        }
    }

    /// Tells what was found out, after the set that knows it is exposed.
    pub(super) fn tell_findings(&mut self) {
        let found = self.asking.found.drain(..).map(|(nonce, finding)| Action::Answered { nonce, finding });
        self.actions.extend(found);
    }
}
