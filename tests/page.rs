//! The page that the server serves, in a real browser: what a person does there, and what it looks like.
//!
//! Pictures of it are written to `target/screenshots`.

use std::path::{Path, PathBuf};

use revocast_tests::browser::{Browser, Sight};
use revocast_tests::process::{Mosquitto, REALM, Server, Site, Via, now, publish, until_true};
use serde_json::json;

const DESKTOP: Sight = Sight { width: 1_200, height: 900, mobile: false, dark: false };
const PHONE: Sight = Sight { width: 360, height: 740, mobile: true, dark: false };

fn screenshots() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("screenshots")
}

fn pictures(browser: &Browser, name: &str) {
    for (sight, screen) in [(DESKTOP, "desktop"), (PHONE, "phone")] {
        for (dark, colors) in [(false, "light"), (true, "dark")] {
            browser.look(Sight { dark, ..sight });
            // The histogram is drawn anew for the width at the next look.
            let drawn = browser.run("return document.documentElement.scrollWidth <= window.innerWidth");
            assert_eq!(drawn, json!(true), "{name} is wider than a {screen}");
            browser.picture(&screenshots().join(format!("{name}-{screen}-{colors}.png")));
        }
    }
    browser.look(DESKTOP);
}

/// Types a change and confirms it.
fn change(browser: &Browser, jti: &str, reason: &str, kind: &str) {
    browser.type_into("#jti", jti);
    if !reason.is_empty() {
        browser.type_into("#reason", reason);
    }
    browser.click(kind);
    assert_eq!(browser.text("#confirm-jti"), jti);
    assert_eq!(browser.text("#confirm-realm"), REALM);
    browser.click("#confirm-yes");
}

/// Wherever it comes from: what was typed in, a reason, the name of a device.
fn markup_stays_text(browser: &Browser, server: &Server, mosquitto: &Mosquitto) {
    let hostile = "<img src=x onerror=document.title=1>";
    change(browser, hostile, hostile, "#revoke");
    browser.wait_for("#outcomes", &format!("{hostile} is revoked: entry 3."));
    let topic = format!("revocast/{REALM}/devices/{hostile}/report");
    publish(&mosquitto.url(), &topic, vec![0; 64], false);
    until_true("the report is counted as garbage", || {
        let answer = server.get(&format!("/v1/realms/{REALM}/fleet"));
        answer.is_ok_and(|(_, fleet)| fleet["heard"]["malformed"] != json!(0))
    });
    assert_eq!(browser.run("return document.images.length"), json!(0));
    assert_eq!(browser.run("return document.title"), json!("Revocast"));
}

/// Whoever cannot see it is told what every control is.
fn every_control_has_a_name(browser: &Browser) {
    let unnamed = "return [...document.querySelectorAll('input, select')].filter(field => field.labels.length === 0)\
                   .length + [...document.querySelectorAll('button')].filter(button => !button.textContent.trim() \
                   && !button.ariaLabel).length";
    // The buttons of the dialog have their words while it is open; they had them above.
    assert_eq!(browser.run(unnamed), json!(0));
}

#[test]
fn a_person_revokes_sees_it_applied_and_takes_it_back() {
    let mosquitto = Mosquitto::start();
    let site = Site::new();
    let server = site.found(Via::Broker(&mosquitto.url()));
    let later = now() + 3_600;
    let browser = Browser::start();
    browser.look(DESKTOP);
    browser.open(&format!("{}/", server.url()));
    browser.wait_for("#door", "Sign in");
    pictures(&browser, "sign-in");

    // Wrong credentials are told, and nothing is shown.
    browser.type_into("#secret", "not-the-one\u{e007}");
    browser.wait_for("#notice", "does not know this credential");
    assert_eq!(browser.run("return document.getElementById('room').hidden"), json!(true));
    let _ = (browser.complaints(), browser.requests());

    // Return signs in. Nobody has reported yet, and nothing was revoked.
    browser.type_into("#secret", &format!("{}\u{e007}", server.token()));
    browser.wait_for("#pulse", "live");
    browser.wait_for("#fleet", "No device has reported yet");
    assert_eq!(browser.text("#realm-title"), REALM);
    pictures(&browser, "empty");

    let agents = ["door-1", "door-2", "gate-7"].map(|name| site.agent(name, &mosquitto.url()));
    browser.wait_for("#fleet", "3 devices are online of 3 known");
    browser.wait_for("#current", "100 %");

    // The command says the same.
    let told = server.command(&["--json", "fleet", "--realm", REALM]).ok().json();
    assert_eq!((&told["realm"], &told["online"], &told["current"]), (&json!(REALM), &json!(3), &json!(3)));
    let words = server.command(&["fleet"]).ok().stdout;
    assert!(words.contains("3 of 3 devices online, 3 of them at the head (100.0 %)"), "{words}");

    // Cancelled is not done.
    browser.type_into("#jti", "token-1");
    browser.click("#revoke");
    browser.wait_for("#confirm-title", "Revoke this token?");
    browser.look(PHONE);
    browser.picture(&screenshots().join("confirm-phone-light.png"));
    browser.look(DESKTOP);
    browser.click("#confirm-no");
    assert_eq!(server.head(), 0);
    // Neither is what Escape ends.
    browser.click("#revoke");
    browser.type_into("#confirm-yes", "\u{e00c}");
    until_true("the dialog is closed", || {
        browser.run("return document.getElementById('confirm').open") == json!(false)
    });
    assert_eq!(server.head(), 0);

    browser.click("#revoke");
    assert_eq!(browser.text("#confirm-jti"), "token-1");
    browser.click("#confirm-yes");
    browser.wait_for("#outcomes", "token-1 is revoked: entry 1.");
    browser.wait_for("#outcomes", "applied by 3 of 3 devices");
    until_true("every step is done", || {
        browser.run("return document.querySelectorAll('.steps .done').length") == json!(3)
    });
    for agent in &agents {
        assert_eq!(agent.verdict("token-1", later), "revoked");
    }
    browser.wait_for("#spread", "Half within");
    assert_ne!(browser.run("return document.querySelectorAll('#histogram rect').length"), json!(0));

    change(&browser, "token-1", "a mistake", "#reinstate");
    browser.wait_for("#outcomes", "token-1 is reinstated: entry 2.");
    until_true("every step is done", || {
        browser.run("return document.querySelectorAll('.steps .done').length") == json!(6)
    });
    for agent in &agents {
        assert_eq!(agent.verdict("token-1", later), "not-revoked");
    }

    // What cannot be meant is told before anything is asked.
    browser.type_into("#jti", "token-2");
    browser.type_into("#exp", "1900000000000");
    browser.click("#revoke");
    browser.wait_for("#change-error", "milliseconds");
    let _ = browser.run("document.getElementById('change').reset(); return null");

    markup_stays_text(&browser, &server, &mosquitto);
    pictures(&browser, "live");
    every_control_has_a_name(&browser);
    // The other colors are a choice that stays.
    browser.click("#theme");
    assert_eq!(browser.run("return document.documentElement.dataset.theme"), json!("dark"));
    assert_eq!(browser.complaints(), Vec::<String>::new());
    let own = format!("{}/", server.url());
    let foreign: Vec<String> = browser.requests().into_iter().filter(|url| !url.starts_with(&own)).collect();
    assert_eq!(foreign, Vec::<String>::new(), "something is asked of others");

    // A server that is gone is told, and what was known stays to be read.
    drop(server);
    browser.wait_for("#notice", "does not answer");
    assert_eq!(browser.text("#realm-title"), REALM);
    browser.look(DESKTOP);
    browser.picture(&screenshots().join("down-desktop-dark.png"));
    browser.click("#sign-out");
    browser.wait_for("#door", "Sign in");
    assert_eq!(browser.run("return sessionStorage.length"), json!(0));
}

#[test]
fn every_text_stands_out_from_what_is_behind_it() {
    let style = include_str!("../crates/server/src/api/page/style.css");
    // The light palette stands in :root, the dark one after it.
    let palettes: Vec<&str> = style.split("--paper:").skip(1).collect();
    assert_eq!(palettes.len(), 3, "light, dark by choice, dark by preference");
    for palette in palettes {
        let palette = format!("--paper:{palette}");
        let color = |name: &str| {
            let (_, after) = palette.split_once(&format!("--{name}: #")).unwrap_or_else(|| panic!("no {name}"));
            luminance(&after[..6])
        };
        let pairs = [
            ("ink", "paper"),
            ("ink", "sheet"),
            ("muted", "paper"),
            ("muted", "sheet"),
            ("accent", "paper"),
            ("accent", "sheet"),
            ("bad", "paper"),
            ("bad", "sheet"),
            ("bad", "bad-wash"),
            ("on-accent", "accent"),
        ];
        for (front, back) in pairs {
            let (front_light, back_light) = (color(front), color(back));
            let contrast = (front_light.max(back_light) + 0.05) / (front_light.min(back_light) + 0.05);
            assert!(contrast >= 4.5, "{front} on {back}: {contrast:.2}");
        }
    }
}

/// Relative luminance of a color, as WCAG 2 defines it.
fn luminance(hex: &str) -> f64 {
    let part = |at: usize| {
        let value = f64::from(u8::from_str_radix(&hex[at..at + 2], 16).expect("a color")) / 255.0;
        if value <= 0.039_28 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * part(0) + 0.7152 * part(2) + 0.0722 * part(4)
}
