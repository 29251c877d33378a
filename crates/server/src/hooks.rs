//! What a broker asks before it lets somebody do something: who may connect, and who may say and hear what.
//!
//! A device shows its token as the MQTT password. Its user name is the name of its realm, its client id its own, so that
//! every later question can be answered from the question alone, by any server, also after a restart. The token proves
//! both: it must be honored at this moment, and speak of that device. Whoever names no realm of this server is somebody
//! else's to judge, such as this server's own user. Every doubt is a no.
//!
//! A device hears what is published for all and what is for it alone, and says what a device says, in its own name.

use std::sync::Arc;

use revocast_core::update::{DeviceTopic, TokenTopic};
use revocast_core::{DeviceId, RealmId, UnixTime};

use crate::config::{BridgeConfig, BridgeIn};
use crate::judge::{Shown, honored};
use crate::ledger::{Ledger, LedgerError, Realm};
use crate::metrics::{HookQuestion, Metrics};
use crate::service::{Service, ServiceError};
use crate::tokens::{Date, Issuers};

/// First levels, below prefix and realm, of what is published for every device.
const FOR_ALL: [&str; 6] = ["keys", "manifest", "live", "ladder", "e", "jwks"];

/// What a device says, each on a topic of its own.
const OWN: [DeviceTopic; 3] = [DeviceTopic::Report, DeviceTopic::Ask, DeviceTopic::Renew];

/// What a broker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Allow {
        /// Until when, where the question was about a session: its token expires then.
        until: Option<UnixTime>,
    },
    /// No, whatever anybody else says.
    Deny,
    /// It is no device of any realm here; somebody else decides.
    Ignore,
}

impl Decision {
    /// Yes, for as long as nobody asks again.
    pub const ALLOW: Self = Self::Allow { until: None };

    fn of(allowed: bool) -> Self {
        if allowed { Self::ALLOW } else { Self::Deny }
    }

    /// Whether it is a yes.
    #[must_use]
    pub const fn is_allowed(self) -> bool {
        matches!(self, Self::Allow { .. })
    }

    /// The name in answers and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow { .. } => "allow",
            Self::Deny => "deny",
            Self::Ignore => "ignore",
        }
    }
}

/// What a client wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Send to a topic.
    Publish,
    /// Hear what matches a filter, or one message on a topic.
    Subscribe,
}

/// Decides for brokers.
pub struct Hooks {
    service: Arc<Service>,
    ledger: Arc<dyn Ledger>,
    issuers: Arc<Issuers>,
    metrics: Arc<Metrics>,
    topics: HookTopics,
}

/// The topics that hooks decide about.
#[derive(Clone, Debug)]
pub struct HookTopics {
    /// First level of those of the realms.
    pub prefix: String,
    /// Where tokens are delivered.
    pub tokens: TokenTopic,
    /// The bridge, if there is one.
    pub bridge: Option<BridgeConfig>,
}

impl Hooks {
    /// Decides by the ledger and the keys at hand.
    #[must_use]
    pub const fn new(
        service: Arc<Service>,
        ledger: Arc<dyn Ledger>,
        issuers: Arc<Issuers>,
        metrics: Arc<Metrics>,
        topics: HookTopics,
    ) -> Self {
        Self { service, ledger, issuers, metrics, topics }
    }

    /// Whether a client may connect.
    pub async fn connect(&self, user: &str, client_id: &str, password: &str) -> Decision {
        let decision = match self.realm(user).await {
            Ok(Some(realm)) => self.admit(&realm, client_id, password).await,
            Ok(None) => Decision::Ignore,
            Err(decision) => decision,
        };
        if decision == Decision::Deny {
            tracing::info!(realm = user, client = client_id, "a broker was told not to let a client in");
        }
        self.metrics.hook_answered(HookQuestion::connect, decision.name());
        decision
    }

    /// Whether a client that is connected may do something.
    pub async fn act(&self, user: &str, client_id: &str, act: Act, topic: &str) -> Decision {
        let decision = match self.realm(user).await {
            Ok(Some(realm)) => match DeviceId::new(client_id) {
                Ok(device) => Decision::of(match act {
                    Act::Publish => self.may_publish(realm.id, device, topic),
                    Act::Subscribe => self.may_hear(realm.id, device, topic),
                }),
                Err(_) => Decision::Deny,
            },
            Ok(None) => Decision::Ignore,
            Err(decision) => decision,
        };
        let question = match act {
            Act::Publish => HookQuestion::publish,
            Act::Subscribe => HookQuestion::subscribe,
        };
        self.metrics.hook_answered(question, decision.name());
        decision
    }

    /// The realm that a user name names, if it is one of this server.
    async fn realm(&self, user: &str) -> Result<Option<Realm>, Decision> {
        let Ok(id) = RealmId::new(user) else { return Ok(None) };
        match self.service.realm(id).await {
            Ok(realm) => Ok(Some(realm)),
            Err(ServiceError::Ledger(LedgerError::RealmUnknown { .. })) => Ok(None),
            Err(error) => {
                tracing::error!(%error, "whether a client may connect is not known; it is told no");
                Err(Decision::Deny)
            }
        }
    }

    async fn admit(&self, realm: &Realm, client_id: &str, password: &str) -> Decision {
        let Ok(device) = DeviceId::new(client_id) else { return Decision::Deny };
        let shown = match honored(&self.service, &self.issuers, realm, password).await {
            Ok(Some(shown)) => shown,
            Ok(None) => return Decision::Deny,
            Err(error) => {
                tracing::error!(%error, "whether a token is honored is not known; its bearer is told no");
                return Decision::Deny;
            }
        };
        match self.speaks_of(realm.id, &shown, device).await {
            Ok(true) => {}
            Ok(false) => return Decision::Deny,
            Err(error) => {
                tracing::error!(%error, "whose token was shown is not known; its bearer is told no");
                return Decision::Deny;
            }
        }
        let Date(exp) = shown.exp;
        Decision::Allow { until: Some(exp) }
    }

    /// Whether a token is that of a device: issued to it, or else with its `sub`. An enrolled device has a `sub` of its own;
    /// that of any other is its name.
    async fn speaks_of(&self, realm: RealmId, shown: &Shown, device: DeviceId) -> Result<bool, LedgerError> {
        if let Some(issued) = self.ledger.find_issued(realm, shown.jti.clone()).await?
            && let Some(holder) = issued.device
        {
            return Ok(holder == device);
        }
        let enrolled = self.ledger.device(realm, device).await?;
        let subject = enrolled.as_ref().map_or(device.as_str(), |enrolled| &enrolled.subject);
        Ok(shown.sub.as_deref() == Some(subject))
    }

    fn may_publish(&self, realm: RealmId, device: DeviceId, topic: &str) -> bool {
        let own = OWN.iter().any(|kind| kind.parse(&self.topics.prefix, topic) == Some((realm, device)));
        // A token that is shown there proves itself; a plain jti proves nothing.
        own || self.bridges(realm, topic, |bridge| bridge.inward == BridgeIn::Signed)
    }

    fn may_hear(&self, realm: RealmId, device: DeviceId, filter: &str) -> bool {
        let HookTopics { prefix, tokens, .. } = &self.topics;
        if filter == DeviceTopic::Answer.topic(prefix, &realm, &device)
            || filter == tokens.topic(&realm, &device)
            || self.bridges(realm, filter, |bridge| bridge.outward)
        {
            return true;
        }
        // Wildcards only below a level that is for all: beside it stand the topics of other devices.
        let mut levels =
            filter.strip_prefix(&**prefix).and_then(|rest| rest.strip_prefix('/')).unwrap_or("").split('/');
        levels.next() == Some(realm.as_str()) && levels.next().is_some_and(|level| FOR_ALL.contains(&level))
    }

    fn bridges(&self, realm: RealmId, topic: &str, way: impl Fn(&BridgeConfig) -> bool) -> bool {
        self.topics.bridge.as_ref().is_some_and(|bridge| bridge.realm == realm && bridge.topic == topic && way(bridge))
    }
}
