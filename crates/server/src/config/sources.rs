//! Where values come from: file, environment, command line; the later of these wins.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use thiserror::Error;
use toml::Value;
use toml::de::{DeTable, DeValue};

use super::settings::{Choices, SETTINGS, Setting, VARIABLE_PREFIX};
use super::{ConfigError, ServerConfig};

/// A config file is a page of text. A larger one is another file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Variables that other commands read.
const OTHER_VARIABLES: [&str; 3] = ["REVOCAST_CONFIG", "REVOCAST_SERVER", "REVOCAST_ADMIN_TOKEN_FILE"];

/// Where a value was chosen. The later wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody chose it.
    Default,
    /// The config file.
    File {
        /// Which.
        path: PathBuf,
        /// Where in it, from 1.
        line: usize,
    },
    /// The environment.
    Variable {
        /// Its name.
        name: String,
    },
    /// The command line.
    Flag {
        /// Its name, without the two hyphens.
        name: String,
    },
}

impl Origin {
    /// Whether both are the same kind of place, so that neither wins.
    pub(super) const fn same_place(&self, other: &Self) -> bool {
        matches!(
            (self, other),
            (Self::Default, Self::Default)
                | (Self::File { .. }, Self::File { .. })
                | (Self::Variable { .. }, Self::Variable { .. })
                | (Self::Flag { .. }, Self::Flag { .. })
        )
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{} line {line}", path.display()),
            Self::Variable { name } => f.write_str(name),
            Self::Flag { name } => write!(f, "--{name}"),
        }
    }
}

/// What was chosen, and where.
#[derive(Debug, Default)]
pub struct Chosen {
    config: Choices,
    origins: BTreeMap<&'static str, Origin>,
    mistakes: Vec<Mistake>,
    strangers: Vec<String>,
}

impl Chosen {
    /// Reads everything there is. Mistakes are kept for [`Chosen::check`], so that all of them are told at once.
    ///
    /// `variables` may be the whole environment; `flags` are names of settings with their texts.
    pub fn read<'a>(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let mut chosen = Self::default();
        if let Some(path) = file {
            chosen.read_file(path);
        }
        for (name, text) in variables {
            let Some(rest) = name.strip_prefix(VARIABLE_PREFIX) else { continue };
            match Setting::named(&rest.to_ascii_lowercase()).filter(|setting| setting.variable() == name) {
                Some(setting) => chosen.read_text(setting, &text, Origin::Variable { name }),
                None if OTHER_VARIABLES.contains(&name.as_str()) => {}
                None => chosen.strangers.push(name),
            }
        }
        chosen.strangers.sort_unstable();
        for (name, text) in flags {
            if let Some(setting) = Setting::named(name) {
                chosen.read_text(setting, text, Origin::Flag { name: setting.flag() });
            }
        }
        chosen
    }

    /// What was chosen.
    #[must_use]
    pub const fn config(&self) -> &Choices {
        &self.config
    }

    /// Where the value of that name was chosen.
    #[must_use]
    pub fn origin(&self, name: &str) -> Origin {
        self.origins.get(name).cloned().unwrap_or(Origin::Default)
    }

    /// Variables that begin like ours and name nothing: misspelled, most often.
    #[must_use]
    pub fn strangers(&self) -> &[String] {
        &self.strangers
    }

    /// Checks everything and fills in what was not chosen. Reads passwords and certificates.
    pub fn check(&self) -> Result<ServerConfig, Mistakes> {
        let checked = super::check(self);
        let mut mistakes = self.mistakes.clone();
        match checked {
            Ok(config) if mistakes.is_empty() => return Ok(config),
            Ok(_) => {}
            // What could not be read is not set; that is not another mistake.
            Err(more) => mistakes.extend(more.into_iter().filter(|mistake| {
                !self.mistakes.iter().any(|read| match read.setting {
                    Some(setting) => mistake.setting == Some(setting),
                    None => read.origin.is_none() && matches!(*mistake.error, ConfigError::Missing { .. }),
                })
            })),
        }
        // Down the file, then the environment, then the command line, then what is nowhere.
        mistakes.sort_by(|a, b| (a.origin.is_none(), &a.origin).cmp(&(b.origin.is_none(), &b.origin)));
        Err(Mistakes(mistakes))
    }

    /// What could not be read at all, if anything.
    #[must_use]
    pub fn unreadable(&self) -> Option<Mistakes> {
        (!self.mistakes.is_empty()).then(|| Mistakes(self.mistakes.clone()))
    }

    /// The configuration in effect as a config file, with the origin of each value beside it. Read again, it
    /// gives the same configuration.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let defaults = Choices::defaults();
        let mut text = String::new();
        for setting in SETTINGS {
            let Setting { name, help, .. } = setting;
            let _ = match self.config.value(name).or_else(|| defaults.value(name)) {
                Some(value) => writeln!(text, "# {help}.\n{name} = {value} # {}\n", self.origin(name)),
                None => writeln!(text, "# {help}.\n# {name} is not set\n"),
            };
        }
        text.truncate(text.trim_end().len());
        text
    }

    fn read_file(&mut self, path: &Path) {
        let text = match read_bounded(path) {
            Ok(text) => text,
            Err(error) => return self.mistake(None, None, error),
        };
        let at = |start: usize| Origin::File {
            path: path.to_owned(),
            line: text.get(..start).map_or(1, |before| before.matches('\n').count() + 1),
        };
        let (table, errors) = DeTable::parse_recoverable(&text);
        for error in errors {
            let origin = at(error.span().map_or(0, |span| span.start));
            self.mistake(None, Some(origin), ConfigError::Toml { what: error.message().to_owned() });
        }
        for (key, value) in table.into_inner() {
            let origin = at(key.span().start);
            let Some(setting) = Setting::named(key.get_ref()) else {
                let found = key.into_inner().into_owned();
                let section = matches!(value.get_ref(), DeValue::Table(_));
                self.mistake(None, Some(origin), ConfigError::Unknown { help: similar(&found, section), found });
                continue;
            };
            match Value::deserialize(toml::de::ValueDeserializer::from(value)) {
                Ok(value) => self.choose(setting, value, origin),
                Err(error) => self.misread(setting, &error, origin),
            }
        }
    }

    /// Takes a text for what the setting wants: a text, or else a number or truth value as TOML writes it.
    fn read_text(&mut self, setting: &'static Setting, text: &str, origin: Origin) {
        if text.is_empty() {
            return self.mistake(Some(setting.name), Some(origin), ConfigError::Empty);
        }
        let as_text = Value::String(text.to_owned());
        let taken = match text.parse::<Value>() {
            Ok(value @ (Value::Integer(_) | Value::Float(_) | Value::Boolean(_)))
                if self.config.clone().set(setting.name, as_text.clone()).is_err() =>
            {
                value
            }
            Ok(_) | Err(_) => as_text,
        };
        self.choose(setting, taken, origin);
    }

    fn choose(&mut self, setting: &'static Setting, value: Value, origin: Origin) {
        match self.config.set(setting.name, value) {
            Ok(()) => {
                self.origins.insert(setting.name, origin);
            }
            Err(error) => self.misread(setting, &error, origin),
        }
    }

    fn misread(&mut self, setting: &'static Setting, error: &toml::de::Error, origin: Origin) {
        let what = match &origin {
            Origin::File { .. } => format!("{}: {}", setting.name, error.message()),
            // They have the name in theirs.
            Origin::Variable { .. } | Origin::Flag { .. } | Origin::Default => error.message().to_owned(),
        };
        self.mistake(Some(setting.name), Some(origin), ConfigError::Toml { what });
    }

    fn mistake(&mut self, setting: Option<&'static str>, origin: Option<Origin>, error: ConfigError) {
        self.mistakes.push(Mistake { setting, origin, error: error.into() });
    }
}

impl From<Choices> for Chosen {
    /// Chosen by a program.
    fn from(config: Choices) -> Self {
        Self { config, ..Self::default() }
    }
}

fn read_bounded(path: &Path) -> Result<String, ConfigError> {
    use std::io::Read as _;
    let io = |source| ConfigError::Io { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(io)?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(io)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(ConfigError::FileTooLarge { path: path.to_owned() });
    }
    Ok(text)
}

/// What somebody may have meant.
fn similar(found: &str, section: bool) -> String {
    if section {
        return format!("there are no sections; write {found}_NAME = … instead");
    }
    let distance = |name: &str| {
        let same = found.chars().zip(name.chars()).take_while(|(a, b)| a == b).count();
        let end = found.chars().rev().zip(name.chars().rev()).take_while(|(a, b)| a == b).count();
        found.chars().count().max(name.chars().count()).saturating_sub(same + end)
    };
    match SETTINGS.iter().map(|setting| (distance(setting.name), setting.name)).min() {
        Some((0..=3, name)) => format!("did you mean {name}?"),
        Some(_) | None => "revocast config print lists all of them".to_owned(),
    }
}

/// A mistake, and where it was made.
#[derive(Clone, Debug)]
pub struct Mistake {
    /// The setting, if it is that of one.
    pub setting: Option<&'static str>,
    /// Where, if it was made anywhere.
    pub origin: Option<Origin>,
    /// Which.
    pub error: std::sync::Arc<ConfigError>,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        write!(f, "{}", self.error)?;
        let mut cause = std::error::Error::source(&*self.error);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Everything that is wrong with a configuration; the operator's to mend.
#[derive(Clone, Debug, Error)]
#[error("{}", .0.iter().map(Mistake::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Mistakes(pub Vec<Mistake>);
