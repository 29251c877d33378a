//! A real browser, driven over `WebDriver` (W3C) as a person would drive it.

#![expect(clippy::missing_panics_doc, reason = "every function in here panics when a test has to end")]
#![expect(clippy::must_use_candidate, reason = "some are called for what they insist on")]

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{PATIENCE, Process, free_port, tool, until};

/// The member that names an element (W3C `WebDriver`, section 12.1).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A headless Chromium with a profile of its own.
#[derive(Debug)]
pub struct Browser {
    agent: ureq::Agent,
    session: String,
    _driver: Process,
    _profile: TempDir,
}

/// How a page is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// Width of the screen, CSS pixels.
    pub width: u32,
    /// Height.
    pub height: u32,
    /// Whether it is a phone.
    pub mobile: bool,
    /// Whether its owner prefers dark colors.
    pub dark: bool,
}

impl Browser {
    /// Starts a driver on a free port, and a browser.
    #[must_use]
    pub fn start() -> Self {
        let profile = tempfile::tempdir().expect("a temporary folder");
        let port = free_port();
        let driver = Process::start(
            "chromedriver",
            Command::new(tool("REVOCAST_CHROMEDRIVER")).arg(format!("--port={port}")).arg("--log-level=WARNING"),
        );
        until("chromedriver listens", || TcpStream::connect(("127.0.0.1", port)).ok());
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build()
            .new_agent();
        let arguments = [
            "--headless".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-quic".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            format!("--user-data-dir={}", profile.path().display()),
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "binary": tool("REVOCAST_CHROMIUM"), "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        }}});
        let base = format!("http://127.0.0.1:{port}");
        let mut browser = Self { agent, session: base.clone(), _driver: driver, _profile: profile };
        let made = browser.post("/session", &wanted);
        let id = made["sessionId"].as_str().unwrap_or_else(|| panic!("no session: {made}"));
        browser.session = format!("{base}/session/{id}");
        browser
    }

    fn answer(sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>, what: &str) -> Value {
        let mut response = sent.unwrap_or_else(|error| panic!("{what}: {error}"));
        let text = response.body_mut().with_config().limit(64 << 20).read_to_string().expect("an answer");
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{what}: {error}: {text}"));
        assert_eq!(response.status().as_u16(), 200, "{what}: {answer}");
        answer["value"].clone()
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        Self::answer(self.agent.post(format!("{}{path}", self.session)).send_json(body), path)
    }

    fn get(&self, path: &str) -> Value {
        Self::answer(self.agent.get(format!("{}{path}", self.session)).call(), path)
    }

    /// Opens an address and waits until it is loaded.
    pub fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// Runs a script in the page; what it returns.
    #[must_use]
    pub fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    fn element(&self, selector: &str) -> String {
        let found = self.post("/element", &json!({ "using": "css selector", "value": selector }));
        found[ELEMENT].as_str().unwrap_or_else(|| panic!("no {selector}: {found}")).to_owned()
    }

    /// Clicks on what a person would click on: it must be there to be seen.
    pub fn click(&self, selector: &str) {
        let element = self.element(selector);
        self.post(&format!("/element/{element}/click"), &json!({}));
    }

    /// Types into a field, key by key.
    pub fn type_into(&self, selector: &str, text: &str) {
        let element = self.element(selector);
        self.post(&format!("/element/{element}/value"), &json!({ "text": text }));
    }

    /// The text that can be seen there.
    #[must_use]
    pub fn text(&self, selector: &str) -> String {
        let element = self.element(selector);
        self.get(&format!("/element/{element}/text")).as_str().unwrap_or_default().to_owned()
    }

    /// Waits until a text that can be seen contains these words; returns all of it.
    #[track_caller]
    pub fn wait_for(&self, selector: &str, words: &str) -> String {
        let seen = std::cell::RefCell::new(String::new());
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until(&format!("{selector} says {words:?}"), || {
                *seen.borrow_mut() = self.text(selector);
                seen.borrow().contains(words).then(|| seen.borrow().clone())
            })
        }));
        found.unwrap_or_else(|_| panic!("{selector} does not say {words:?}, but {:?}", seen.borrow()))
    }

    /// Calls the browser itself (Chrome `DevTools` protocol).
    #[must_use]
    pub fn call(&self, command: &str, parameters: &Value) -> Value {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// Looks at the page on another screen.
    pub fn look(&self, sight: Sight) {
        let Sight { width, height, mobile, dark } = sight;
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        let _ = self.call("Emulation.setEmulatedMedia", &features);
        let screen = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile });
        let _ = self.call("Emulation.setDeviceMetricsOverride", &screen);
    }

    /// Writes a picture of the whole page.
    pub fn picture(&self, file: &Path) {
        let taken = self.call("Page.captureScreenshot", &json!({ "format": "png", "captureBeyondViewport": true }));
        let png = STANDARD.decode(taken["data"].as_str().expect("a picture")).expect("base64");
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder).expect("a folder");
        }
        std::fs::write(file, png).expect("a file");
    }

    /// What the page and the browser complained of since this was last asked.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let entries = self.post("/se/log", &json!({ "type": "browser" }));
        let bad = entries.as_array().into_iter().flatten().filter(|entry| {
            // Hints for developers come as INFO and DEBUG.
            ["SEVERE", "WARNING"].iter().any(|level| entry["level"] == *level)
        });
        bad.map(|entry| entry["message"].to_string()).collect()
    }

    /// The addresses of everything that was asked for since this was last asked.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        let entries = self.post("/se/log", &json!({ "type": "performance" }));
        let urls = entries.as_array().into_iter().flatten().filter_map(|entry| {
            let event: Value = serde_json::from_str(entry["message"].as_str()?).ok()?;
            let event = &event["message"];
            (event["method"] == "Network.requestWillBeSent")
                .then(|| event["params"]["request"]["url"].as_str().map(str::to_owned))?
        });
        urls.collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends the browser; the driver ends with its process.
        let _ = self.agent.delete(&self.session).call();
    }
}
