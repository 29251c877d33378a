//! The bridge to what knows nothing but a topic and a `jti`: the simplest publishers and devices.
//!
//! In: a token that the realm's issuer signed becomes a revocation, since whoever holds a token may end it. A bare `jti`
//! becomes one only where the operator vouches for who may publish on the topic. Out: every `jti` that is revoked is
//! announced, in order, by the server that leads, from when it began to lead. Reinstatements and cutoffs are not: such a
//! device knows one thing to do with a `jti`, and that is to refuse it.
//!
//! Nothing comes back on this topic, so a revocation that must not be lost belongs to the API.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use revocast_core::limits::JTI_BYTES_MAX;
use revocast_core::{Allowance, Jti};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

use crate::broker::{Broker, BrokerError, Hearing, Incoming};
use crate::clock::Clock;
use crate::config::{BridgeConfig, BridgeIn};
use crate::ledger::{Entry, Expiry, Ledger, LedgerError, Statement};
use crate::metrics::{BridgeOutcome, Metrics};
use crate::news::News;
use crate::service::{Service, ServiceError};
use crate::tokens::{Date, Issuers, TOKEN_BYTES_MAX, Token};

/// Whom the ledger names as the actor.
pub const ACTOR: &str = "bridge";

/// Messages that wait to be looked at. What comes beyond is dropped and counted.
const WAITING_MAX: usize = 256;

/// Announcements that are recognized when they come back, and for how long.
const ECHOES_MAX: usize = 4_096;
const ECHO_LIFE: Duration = Duration::from_mins(1);

/// How long a revocation is tried while the ledger takes none. What follows waits behind it.
const PATIENCE: Duration = Duration::from_mins(1);

/// Pause between two tries.
const RETRY: Duration = Duration::from_millis(500);

/// What was dropped is counted at least this often.
const LOOK: Duration = Duration::from_secs(1);

/// What was dropped is told in the log at most this often.
const TELL_EVERY: Duration = Duration::from_secs(10);

const DAY: Duration = Duration::from_hours(24);

/// What the bridge stands on.
pub struct Bridge {
    /// What it does.
    pub config: BridgeConfig,
    /// Where revocations go.
    pub service: Arc<Service>,
    /// Who signs the tokens of the realm.
    pub issuers: Arc<Issuers>,
    /// Where it is spoken and heard.
    pub broker: Broker,
    /// Where it is looked up what is revoked already.
    pub ledger: Arc<dyn Ledger>,
    /// Uptime, for the limits.
    pub clock: Arc<dyn Clock>,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
}

/// Carries both ways, as far as they are on, until it is dropped.
pub async fn run(bridge: Bridge, news: News) {
    let echoes = Echoes::default();
    tokio::join!(announce(&bridge, news, &echoes), take_in(&bridge, &echoes));
}

// ---- out ------------------------------------------------------------------------------------------

async fn announce(bridge: &Bridge, mut news: News, echoes: &Echoes) {
    if !bridge.config.outward {
        return;
    }
    loop {
        let Entry { sequence, statement: Statement::Revoke { jti, .. }, .. } = news.next().await else { continue };
        echoes.expect(&jti);
        // One at a time, so that they arrive in order.
        loop {
            match bridge.broker.publish_answer(&bridge.config.topic, jti.clone().into_bytes()).await {
                Ok(()) => {
                    bridge.metrics.bridge_announced();
                    break;
                }
                Err(error @ (BrokerError::Topic { .. } | BrokerError::TooLarge { .. })) => {
                    tracing::error!(%sequence, %error, "a revocation cannot be announced on the bridge");
                    break;
                }
                Err(error) => tracing::debug!(%sequence, %error, "not announced yet"),
            }
            sleep(RETRY).await;
            if !news.is_leading() {
                break;
            }
        }
    }
}

/// What was announced and may come back, since whoever listens hears himself.
#[derive(Debug, Default)]
struct Echoes(Mutex<VecDeque<(Instant, String)>>);

impl Echoes {
    fn expect(&self, jti: &str) {
        let mut expected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if expected.len() >= ECHOES_MAX {
            expected.pop_front();
        }
        expected.push_back((Instant::now(), jti.to_owned()));
    }

    /// Whether this is one; each comes back once.
    fn is_one(&self, payload: &[u8]) -> bool {
        let mut expected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        while expected.front().is_some_and(|(at, _)| now.duration_since(*at) > ECHO_LIFE) {
            expected.pop_front();
        }
        // They come back in order: it is among the first, unless some were lost.
        let found = expected.iter().position(|(_, jti)| jti.as_bytes() == payload);
        found.is_some_and(|at| expected.remove(at).is_some())
    }
}

// ---- in -------------------------------------------------------------------------------------------

async fn take_in(bridge: &Bridge, echoes: &Echoes) {
    let config = &bridge.config;
    if config.inward == BridgeIn::Off {
        return;
    }
    if config.inward == BridgeIn::Plain {
        tracing::warn!(
            topic = config.topic,
            realm = %config.realm,
            "plain jtis are taken in: whoever may publish on this topic can revoke any token of the realm"
        );
    }
    let mut listener = bridge.broker.listen(Hearing {
        name: "b",
        filters: vec![config.topic.clone()],
        payload_bytes_max: TOKEN_BYTES_MAX,
        waiting_max: WAITING_MAX,
        acknowledged: true,
    });
    let (mut limits, mut dropped, mut silent) = (Limits::default(), 0, Silence::default());
    loop {
        // Now and then without a message, since what was dropped before it could be taken tells nobody.
        let message = timeout(LOOK, listener.next()).await.ok();
        let now = bridge.clock.now().uptime;
        let mut over = listener.dropped() - dropped;
        dropped += over;
        bridge.metrics.bridge_heard(BridgeOutcome::limited, over);
        if let Some(message) = message {
            let outcome = if echoes.is_one(&message.payload) {
                BridgeOutcome::echo
            } else if limits.look(now, config) {
                bridge.record(&message, &mut limits).await
            } else {
                BridgeOutcome::limited
            };
            bridge.metrics.bridge_heard(outcome, 1);
            over += u64::from(outcome == BridgeOutcome::limited);
        }
        if let Some(dropped) = silent.tell(now, over) {
            tracing::warn!(
                topic = config.topic,
                dropped,
                per_second = config.per_second,
                per_day = config.per_day,
                "more comes on the bridge than is taken in; what is beyond the limits is dropped"
            );
        }
    }
}

impl Bridge {
    /// Makes a revocation of a message, if it is one.
    async fn record(&self, message: &Incoming, limits: &mut Limits) -> BridgeOutcome {
        let realm = match self.service.realm(self.config.realm).await {
            Ok(realm) => realm,
            Err(error) => {
                tracing::error!(%error, "the realm of the bridge cannot be found");
                return BridgeOutcome::failed;
            }
        };
        let (jti, exp, reason) = match Word::read(&message.payload) {
            Some(Word::Token(token)) => {
                let keys = match self.issuers.keys(&realm, self.service.now()) {
                    Ok(keys) => keys,
                    Err(error) => {
                        tracing::error!(%error, "a token on the bridge cannot be verified");
                        return BridgeOutcome::failed;
                    }
                };
                let genuine = token.is_signed_by(&keys);
                let named = token.claims::<Named>().ok().filter(|named| genuine && named.iss == realm.issuer);
                let Some(Named { jti, exp: Date(exp), .. }) = named else { return BridgeOutcome::refused };
                if Jti::new(&jti).is_err() {
                    return BridgeOutcome::refused;
                }
                if exp <= realm.horizon(self.service.now()) {
                    return BridgeOutcome::expired;
                }
                (jti, Expiry::Vouched(exp), "its token was shown on the bridge")
            }
            Some(Word::Jti(_)) if self.config.inward != BridgeIn::Plain => return BridgeOutcome::passed_over,
            // It carries no end, so it is kept as long as a token of the realm can live.
            Some(Word::Jti(jti)) => {
                (jti.to_owned(), Expiry::Claimed(self.service.now().plus(1)), "announced on the bridge")
            }
            None => return BridgeOutcome::refused,
        };
        let until = Instant::now() + PATIENCE;
        let mut charged = false;
        loop {
            let failure = match self.is_known(&jti, exp, message.retained).await {
                Ok(true) => return BridgeOutcome::known,
                Ok(false) => {
                    charged = charged || limits.record(self.clock.now().uptime, &self.config);
                    if !charged {
                        return BridgeOutcome::limited;
                    }
                    let reason = Some(reason.to_owned());
                    match self.service.revoke_shown(realm.id, jti.clone(), exp, reason, ACTOR).await {
                        Ok(Some(receipt)) if receipt.recorded => return BridgeOutcome::recorded,
                        Ok(Some(_)) => return BridgeOutcome::known,
                        Ok(None) => return BridgeOutcome::expired,
                        Err(error) => error,
                    }
                }
                Err(error) => error.into(),
            };
            if !passes(&failure) || Instant::now() >= until {
                tracing::error!(error = %failure, "a revocation from the bridge was not recorded");
                return BridgeOutcome::failed;
            }
            sleep(RETRY).await;
        }
    }

    /// Whether the ledger says so already. What is retained was said before: it does not undo a reinstatement.
    async fn is_known(&self, jti: &str, exp: Expiry, retained: bool) -> Result<bool, LedgerError> {
        let entry = self.ledger.token(self.config.realm, jti.to_owned()).await?.entry;
        Ok(match entry.map(|entry| entry.statement) {
            Some(Statement::Revoke { exp: held, .. }) => held >= exp.time(),
            Some(Statement::Reinstate { .. }) => retained,
            Some(Statement::Cutoff { .. } | Statement::Lift { .. } | Statement::Resume { .. }) | None => false,
        })
    }
}

/// Whether it may work a little later.
fn passes(error: &ServiceError) -> bool {
    matches!(
        error,
        ServiceError::Ledger(
            LedgerError::Overloaded { .. } | LedgerError::StorageFull(_) | LedgerError::Away(_) | LedgerError::Poisoned
        )
    )
}

/// What a token must say to be revoked.
#[derive(Deserialize)]
struct Named {
    jti: String,
    exp: Date,
    iss: String,
}

/// What somebody says on the bridge.
#[derive(Debug)]
enum Word<'a> {
    /// A token, signed by whomever.
    Token(Token),
    /// A bare `jti`.
    Jti(&'a str),
}

impl<'a> Word<'a> {
    /// Reads a message strictly; `None` if it is neither.
    fn read(payload: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(payload).ok()?;
        if let Ok(token) = Token::parse(text) {
            return Some(Self::Token(token));
        }
        let printable = !text.chars().any(char::is_control) && text.trim() == text;
        (printable && (1..=JTI_BYTES_MAX).contains(&text.len())).then_some(Self::Jti(text))
    }
}

/// How much of what comes is looked at, and how much of that is recorded.
#[derive(Debug, Default)]
struct Limits {
    second: Allowance,
    day: Allowance,
}

impl Limits {
    fn look(&mut self, uptime: Duration, config: &BridgeConfig) -> bool {
        self.second.take(uptime, config.per_second, Duration::from_secs(1) / config.per_second.max(1))
    }

    fn record(&mut self, uptime: Duration, config: &BridgeConfig) -> bool {
        self.day.take(uptime, config.per_day, DAY / config.per_day.max(1))
    }
}

/// Keeps a flood from flooding the log as well.
#[derive(Debug, Default)]
struct Silence {
    untold: u64,
    told: Option<Duration>,
}

impl Silence {
    /// How many are to be told of, if it is time.
    fn tell(&mut self, now: Duration, more: u64) -> Option<u64> {
        self.untold += more;
        let due = self.told.is_none_or(|told| now >= told + TELL_EVERY);
        (due && self.untold > 0).then(|| {
            self.told = Some(now);
            std::mem::take(&mut self.untold)
        })
    }
}

#[cfg(test)]
mod tests {
    use revocast_core::RealmId;
    use serde_json::json;

    use super::*;
    use crate::tokens::tests::Signer;

    #[test]
    fn a_message_is_a_token_a_plain_jti_or_nothing() {
        let token = Signer::new(1).sign(&json!({"alg": "EdDSA"}), &json!({"jti": "t"}));
        assert!(matches!(Word::read(token.as_bytes()), Some(Word::Token(_))));
        for jti in ["a", "a.b.c", "018f-ü", "with space", &"x".repeat(JTI_BYTES_MAX)] {
            assert!(matches!(Word::read(jti.as_bytes()), Some(Word::Jti(read)) if read == jti), "{jti}");
        }
        for text in ["", " ", "a\n", " a", "a\0b", "\u{85}", &format!("{token}\n"), &"x".repeat(JTI_BYTES_MAX + 1)] {
            assert!(Word::read(text.as_bytes()).is_none(), "{text:?}");
        }
        assert!(Word::read(b"\xff\xfe").is_none());
    }

    #[test]
    fn what_was_announced_is_recognized_once_when_it_comes_back() {
        let echoes = Echoes::default();
        for jti in ["a", "b", "a"] {
            echoes.expect(jti);
        }
        assert!(echoes.is_one(b"a") && echoes.is_one(b"a") && !echoes.is_one(b"a") && echoes.is_one(b"b"));
        for number in 0..2 * ECHOES_MAX {
            echoes.expect(&number.to_string());
        }
        assert_eq!(echoes.0.lock().unwrap().len(), ECHOES_MAX);
        assert!(!echoes.is_one(b"0"), "the oldest is forgotten, and the ledger knows it");
    }

    #[test]
    fn a_flood_is_cut_off_by_the_second_and_by_the_day() {
        let config = BridgeConfig {
            topic: "jwt_revoked".into(),
            realm: RealmId::new("r").unwrap(),
            inward: BridgeIn::Plain,
            outward: false,
            per_second: 5,
            per_day: 8,
        };
        let mut limits = Limits::default();
        let mut looked = |at| (0..100).filter(|_| limits.look(Duration::from_secs(at), &config)).count();
        assert_eq!((looked(0), looked(1), looked(100)), (5, 5, 5));
        let mut recorded = |hours| (0..100).filter(|_| limits.record(Duration::from_hours(hours), &config)).count();
        assert_eq!((recorded(1), recorded(1), recorded(4), recorded(100)), (8, 0, 1, 8));
        let mut silence = Silence::default();
        let mut told = |at, more| silence.tell(Duration::from_secs(at), more);
        assert_eq!(
            (told(0, 0), told(1, 3), told(2, 4), told(12, 0), told(30, 0)),
            (None, Some(3), None, Some(4), None)
        );
    }
}
