// The page: asks the API every two seconds and shows what it says. Whatever comes from there, or was typed in, becomes
// text by textContent and nothing else, so that no name, reason or device can bring markup with it.
"use strict";

const POLL_MS = 2000;
const PATIENCE_MS = 8000;
const SECRET = "revocast-credential";
const THEME = "revocast-theme";
const OUTCOMES_MAX = 5;
// An outcome is followed for as long as devices may take that have just lost their connection.
const FOLLOW_MS = 60000;

const $ = (id) => document.getElementById(id);
const state = { secret: null, realm: null, realms: [], status: null, heard: null, session: 0, redraw: () => {} };

// ---- words --------------------------------------------------------------------------------------

const count = (number) => number.toLocaleString("en");
const percent = (share) => (share === 1 ? "100 %" : `${(Math.floor(share * 1000) / 10).toFixed(1)} %`);
const plural = (number, one, many) => `${count(number)} ${number === 1 ? one : many}`;

function span(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

function millis(ms) {
  return ms < 1000 ? `${ms} ms` : `${ms / 1000} s`;
}

function bytes(number) {
  if (number < 1024) return `${number} B`;
  const units = ["KiB", "MiB", "GiB"];
  let value = number / 1024;
  let at = 0;
  while (value >= 1024 && at < units.length - 1) { value /= 1024; at += 1; }
  return `${value.toFixed(value < 10 ? 1 : 0)} ${units[at]}`;
}

function rate(number) {
  if (number === 0) return "0 %";
  return number >= 0.0001 ? `${(number * 100).toPrecision(2)} %` : number.toExponential(1);
}

const instant = (seconds) => new Date(seconds * 1000).toISOString().replace("T", " ").replace(".000Z", " UTC");

// ---- elements -----------------------------------------------------------------------------------

function set(element, text) {
  // Unchanged text is left alone, or a screen reader would read it again and a selection would be lost.
  if (element.textContent !== text) element.textContent = text;
}

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function draw(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function say(text) {
  $("notice").hidden = !text;
  set($("notice"), text || "");
}

// ---- API ----------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `the server answered ${status}`);
    this.status = status;
  }
}

async function ask(path, body) {
  const options = { headers: { authorization: `Bearer ${state.secret}` }, signal: AbortSignal.timeout(PATIENCE_MS), cache: "no-store" };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, answer);
  return answer;
}

const within = (realm, rest) => `/v1/realms/${encodeURIComponent(realm)}/${rest}`;

// ---- showing ------------------------------------------------------------------------------------

function showRealms(realms) {
  const names = realms.map((realm) => realm.name);
  if (!names.includes(state.realm)) state.realm = names.length > 0 ? names[0] : null;
  const select = $("realm");
  if (names.join() !== [...select.options].map((option) => option.value).join()) {
    select.replaceChildren(...names.map((name) => { const option = make("option", name); option.value = name; return option; }));
  }
  select.value = state.realm || "";
  $("choose").hidden = names.length < 2;
  $("no-realm").hidden = names.length > 0;
  $("state").hidden = names.length === 0;
}

function rows(list, entries) {
  const wanted = entries.filter(([, text]) => text !== undefined);
  if (list.children.length !== wanted.length) {
    list.replaceChildren(...wanted.map(() => { const row = make("div"); row.append(make("dt"), make("dd")); return row; }));
  }
  wanted.forEach(([name, text], at) => {
    set(list.children[at].children[0], name);
    set(list.children[at].children[1], text);
  });
}

function showPublication(status, realm) {
  const published = realm.published;
  const broker = status.broker;
  const trouble = (published && published.trouble) || status.leader.trouble || (broker.connected ? "" : broker.trouble || "the broker is not connected yet");
  $("trouble").hidden = !trouble;
  set($("trouble"), trouble);
  const health = published && published.filter_health;
  const age = published && published.issued_at_ms > 0 ? published.heartbeat_age_ms / 1000 : undefined;
  const office = status.leader;
  const leader = office.leading ? "this server" : office.leader ? `${office.leader}${office.address ? `, ${office.address}` : ""}` : "none yet";
  rows($("publication"), [
    ["Broker", broker.connected ? "connected" : "not connected"],
    ["Ledger", status.ledger.writable ? "takes entries" : "takes no entries: restart the server"],
    ["Leader", leader],
    ["Term", `${realm.term}`],
    ["Last heartbeat", age === undefined ? "none yet" : `${span(age)} ago`],
    ["Published", published ? `${published.epoch}.${published.sequence}, ${plural(published.objects, "object", "objects")}` : "nothing yet"],
    ["Filter", health ? `${rate(health.rate)} false positives${health.meant ? `, built for ${rate(health.meant)}` : ""}; ${percent(health.fill)} of the bits set` : undefined],
    ["Sizes", published ? `snapshot ${bytes(published.snapshot_bytes)}, filter ${bytes(published.filter_bytes)}, ladder ${bytes(published.ladder_bytes)}` : undefined],
    ["Questions", published ? `${count(published.questions_answered)} answered, ${count(published.questions_dropped)} dropped` : undefined],
    ["Registry", `${plural(realm.registered, "token", "tokens")}`],
  ]);
}

function showFacts(realm, fleet) {
  const published = realm.published;
  set($("realm-title"), realm.name);
  set($("issuer"), realm.issuer);
  set($("position"), published ? `${published.epoch}.${published.sequence}` : "–");
  const behind = published ? realm.head - published.sequence : realm.head;
  set($("position-note"), behind > 0 ? `${plural(behind, "entry is", "entries are")} on the way` : `${plural(realm.head, "entry", "entries")}, all published`);
  set($("revocations"), published ? count(published.revocations) : "–");
  set($("revocations-note"), "live, not yet expired");
  const bits = published && published.bits_per_revocation;
  set($("bits"), bits ? bits.toFixed(bits < 100 ? 1 : 0) : "–");
  set($("bits-note"), bits ? "travel in a snapshot" : "nothing revoked");
  set($("current"), fleet && fleet.online > 0 ? percent(fleet.current_share) : "–");
  set($("current-note"), fleet && fleet.online > 0 ? `${count(fleet.current)} of ${count(fleet.online)} online` : "none online");
}

function showSpread(spread) {
  const some = spread.samples > 0;
  $("histogram-box").hidden = !some;
  if (!some) {
    set($("spread"), "No device has applied a revocation since this server was started.");
    return;
  }
  const words = `Half within ${millis(spread.p50_ms)}, nine in ten within ${millis(spread.p90_ms)}, 99 in a hundred within ${millis(spread.p99_ms)}; ` +
    `the last ${plural(spread.revocations, "revocation", "revocations")}, ${plural(spread.samples, "time", "times")} applied.`;
  set($("spread"), words);
  state.redraw = () => drawHistogram(spread.buckets, words);
  state.redraw();
}

function drawHistogram(buckets, words) {
  const svg = $("histogram");
  // A phone shows the same picture with larger letters, so it is drawn narrower.
  const width = Math.max(320, Math.min(720, svg.parentElement.clientWidth || 720));
  const key = JSON.stringify([width, buckets]);
  if (svg.dataset.key === key) return;
  svg.dataset.key = key;
  // From the first bucket to the last that holds something, with room to compare.
  let end = buckets.length;
  while (end > 10 && buckets[end - 1].count === 0) end -= 1;
  const shown = buckets.slice(0, end);
  const height = 200;
  const base = height - 28;
  const step = width / shown.length;
  const most = Math.max(...shown.map((bucket) => bucket.count), 1);
  const every = Math.ceil(46 / step);
  const parts = [draw("line", { x1: 0, x2: width, y1: base + 0.5, y2: base + 0.5 })];
  shown.forEach((bucket, at) => {
    const tall = bucket.count === 0 ? 0 : Math.max(2, (bucket.count / most) * (base - 22));
    const middle = at * step + step / 2;
    parts.push(draw("rect", { x: at * step + 1.5, y: base - tall, width: Math.max(1, step - 3), height: tall, rx: 1.5 }));
    if (bucket.count > 0 && step > 26) parts.push(draw("text", { x: middle, y: base - tall - 6 }, count(bucket.count)));
    const label = bucket.up_to_ms === undefined ? "more" : String(bucket.up_to_ms / 1000);
    if (at % every === 0) parts.push(draw("text", { x: middle, y: height - 8 }, label));
  });
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", `Histogram of the time to apply. ${words}`);
  svg.replaceChildren(...parts);
}

function fill(body, devices, cells) {
  body.replaceChildren(...devices.map((device) => {
    const row = make("tr");
    row.append(...cells(device).map(([text, className]) => make("td", text, className)));
    return row;
  }));
}

function showFleet(fleet) {
  const words = [];
  if (fleet.known === 0) {
    words.push("No device has reported yet.");
  } else {
    words.push(`${plural(fleet.online, "device is", "devices are")} online of ${count(fleet.known)} known.`);
    if (fleet.online > 0) words.push(`Half of them hold a set of at most ${bytes(fleet.memory.median_bytes)}; the largest takes ${bytes(fleet.memory.max_bytes)}.`);
    if (fleet.attacked > 0) words.push(`${plural(fleet.attacked, "device refuses", "devices refuse")} again and again.`);
    if (fleet.beyond > 0) words.push(`${plural(fleet.beyond, "claims", "claim")} what does not exist.`);
  }
  set($("fleet"), words.join(" "));
  const profiles = fleet.profiles.filter((profile) => profile.devices > 0);
  $("profiles").replaceChildren(...profiles.map((profile) => make("li", `${profile.profile} ${count(profile.devices)}`)));
  $("refusing-box").hidden = fleet.refusing.length === 0;
  fill($("refusing"), fleet.refusing, (device) => [
    [device.device], [device.refusal || "other", device.repeated ? "attack" : ""], [count(device.rise), "number"],
  ]);
  $("stalest-box").hidden = fleet.stalest.length === 0;
  fill($("stalest"), fleet.stalest, (device) => [
    [device.device], [`${device.epoch}.${device.sequence}`, "number"], [`${span(device.silent_seconds)} ago`, "number"],
  ]);
}

function pulse(good, text) {
  $("pulse").hidden = false;
  $("pulse").classList.toggle("bad", !good);
  set($("pulse-text"), text);
}

function show(status, fleet) {
  showRealms(status.realms);
  set($("version"), `Revocast ${status.version}`);
  const realm = status.realms.find((found) => found.name === state.realm);
  state.realms = status.realms;
  if (!realm) {
    set($("realm-title"), "Welcome");
    return;
  }
  showFacts(realm, fleet);
  showPublication(status, realm);
  if (fleet) {
    showSpread(fleet.propagation);
    showFleet(fleet);
  }
}

// ---- the loop -----------------------------------------------------------------------------------

// The server's time, as far as its answers tell: a wrong clock here must not make a heartbeat look old.
state.clockError = 0;
state.serverNow = () => Date.now() + state.clockError;

async function look(session) {
  const status = await ask("/v1/status");
  if (status.now_ms) state.clockError = status.now_ms - Date.now();
  const names = status.realms.map((realm) => realm.name);
  const realm = names.includes(state.realm) ? state.realm : names[0];
  const fleet = realm === undefined ? null : await ask(within(realm, "fleet"));
  // Whoever signed out meanwhile shall not see it.
  if (session !== state.session) return;
  state.realm = realm === undefined ? null : realm;
  show(status, fleet);
  state.heard = new Date();
}

async function poll(session) {
  while (session === state.session) {
    if (!document.hidden) {
      try {
        await look(session);
        if (session !== state.session) return;
        document.body.classList.remove("old");
        say("");
        pulse(true, "live");
      } catch (error) {
        if (session !== state.session) return;
        if (error instanceof Refused && error.status === 401) {
          signOut("The server does not know this credential.");
          return;
        }
        document.body.classList.add("old");
        const since = state.heard ? ` What is shown is from ${state.heard.toLocaleTimeString("en-GB")}.` : "";
        if (error instanceof Refused) {
          pulse(false, "refused");
          say(`The server refuses: ${error.message}.${since}`);
        } else {
          pulse(false, "no answer");
          say(`The server does not answer; trying again.${since}`);
        }
      }
    }
    await new Promise((done) => setTimeout(done, POLL_MS));
  }
}

function enter(secret) {
  state.secret = secret;
  state.session += 1;
  sessionStorage.setItem(SECRET, secret);
  $("door").hidden = true;
  $("room").hidden = false;
  $("sign-out").hidden = false;
  poll(state.session);
}

function signOut(words) {
  state.session += 1;
  state.secret = null;
  state.heard = null;
  sessionStorage.removeItem(SECRET);
  document.body.classList.remove("old");
  $("confirm").close();
  $("room").hidden = true;
  $("state").hidden = true;
  $("outcomes").replaceChildren();
  $("pulse").hidden = true;
  $("sign-out").hidden = true;
  $("door").hidden = false;
  $("secret").value = "";
  set($("version"), "");
  say(words);
  $("secret").focus();
}

// ---- changes ------------------------------------------------------------------------------------

function complain(words, field) {
  $("change-error").hidden = !words;
  set($("change-error"), words);
  for (const input of [$("jti"), $("exp")]) input.setAttribute("aria-invalid", String(input === field));
  if (field) field.focus();
}

// What the form asks for; null if it cannot be meant.
function readChange(kind) {
  const realm = state.realms.find((found) => found.name === state.realm);
  const jti = $("jti").value.trim();
  if (!realm) return null;
  if (!jti) { complain("Name the token by its jti.", $("jti")); return null; }
  const typed = $("exp").value.trim();
  const now = Math.floor(state.serverNow() / 1000);
  let exp = now + realm.max_token_lifetime;
  if (kind === "revoke" && typed) {
    if (!/^[0-9]{1,15}$/.test(typed)) { complain("The expiry is a whole number of seconds since 1970.", $("exp")); return null; }
    exp = Number(typed);
    if (exp > now * 100) { complain("That expiry is in milliseconds, it seems; it is meant in seconds.", $("exp")); return null; }
  }
  complain("");
  return { kind, realm: realm.name, jti, exp, reason: $("reason").value.trim() };
}

function confirmed(change) {
  const dialog = $("confirm");
  const revoke = change.kind === "revoke";
  set($("confirm-title"), revoke ? "Revoke this token?" : "Reinstate this token?");
  set($("confirm-realm"), change.realm);
  set($("confirm-jti"), change.jti);
  $("confirm-exp-row").hidden = !revoke;
  set($("confirm-exp"), instant(change.exp));
  $("confirm-reason-row").hidden = !change.reason;
  set($("confirm-reason"), change.reason);
  set($("confirm-words"), revoke
    ? "Every device will refuse it, most of them within seconds."
    : "Its revocation is undone, and every device will accept it again until it expires. A cutoff that covers it stays in force.");
  set($("confirm-yes"), revoke ? "Revoke" : "Reinstate");
  dialog.returnValue = "";
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
  });
}

function outcome(text) {
  const item = make("li");
  item.append(make("p", text, "what"));
  $("outcomes").prepend(item);
  while ($("outcomes").children.length > OUTCOMES_MAX) $("outcomes").lastElementChild.remove();
  return item;
}

async function follow(item, change, sequence, session) {
  const steps = make("p", undefined, "steps");
  const [durable, published, applied] = ["durable", "published", "applied"].map((name) => make("span", name));
  durable.className = "done";
  steps.append(durable, published, applied);
  item.append(steps);
  const until = Date.now() + FOLLOW_MS;
  while (Date.now() < until && session === state.session && item.isConnected) {
    try {
      const fleet = await ask(within(change.realm, `fleet?at_least=${sequence}`));
      if (fleet.seen && fleet.seen.sequence >= sequence) published.className = "done";
      if (fleet.online > 0) set(applied, `applied by ${count(fleet.reached)} of ${plural(fleet.online, "device", "devices")}`);
      else set(applied, "no device is online");
      if (fleet.online > 0 && fleet.reached === fleet.online && published.className === "done") {
        applied.className = "done";
        return;
      }
    } catch {
      // The loop above says that the server does not answer.
    }
    await new Promise((done) => setTimeout(done, 500));
  }
}

async function submit(event) {
  event.preventDefault();
  const kind = event.submitter && event.submitter.value === "reinstate" ? "reinstate" : "revoke";
  const change = readChange(kind);
  if (!change || !(await confirmed(change))) return;
  const session = state.session;
  const buttons = [$("revoke"), $("reinstate")];
  for (const button of buttons) button.disabled = true;
  try {
    const body = { jti: change.jti };
    if (change.reason) body.reason = change.reason;
    if (kind === "revoke") body.exp = change.exp;
    const receipt = await ask(within(change.realm, kind === "revoke" ? "revocations" : "reinstatements"), body);
    if (session !== state.session) return;
    if (!receipt.recorded && kind === "reinstate") {
      outcome(`${change.jti} is not revoked; there is nothing to undo.`);
    } else {
      const words = kind === "revoke" ? (receipt.recorded ? "is revoked" : "was revoked already") : "is reinstated";
      const item = outcome(`${change.jti} ${words}: entry ${receipt.sequence}.`);
      follow(item, change, receipt.sequence, session);
    }
    $("change").reset();
  } catch (error) {
    if (session !== state.session) return;
    if (error instanceof Refused && error.status === 401) signOut("The server does not know this credential any more.");
    else if (error instanceof Refused) complain(`Refused: ${error.message}.`);
    else complain("The server did not answer, so whether this was recorded is not known. It may be repeated.");
  } finally {
    for (const button of buttons) button.disabled = false;
  }
}

// ---- theme --------------------------------------------------------------------------------------

const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : prefersDark.matches;
}

function showTheme() {
  set($("theme"), isDark() ? "Light" : "Dark");
  $("theme").setAttribute("aria-label", isDark() ? "Switch to light colors" : "Switch to dark colors");
}

function choose(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem(THEME, theme);
  showTheme();
}

// ---- begin --------------------------------------------------------------------------------------

const theme = localStorage.getItem(THEME);
if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
showTheme();
prefersDark.addEventListener("change", showTheme);
$("theme").addEventListener("click", () => choose(isDark() ? "light" : "dark"));
$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  const secret = $("secret").value.trim();
  if (!/^[\x21-\x7e]+$/.test(secret)) { say("A credential has no spaces and no letters beyond ASCII."); return; }
  say("");
  enter(secret);
});
$("sign-out").addEventListener("click", () => signOut(""));
$("realm").addEventListener("change", (event) => {
  state.realm = event.target.value;
  look(state.session).catch(() => {});
});
$("change").addEventListener("submit", submit);
window.addEventListener("resize", () => state.redraw());
const kept = sessionStorage.getItem(SECRET);
if (kept) enter(kept); else $("secret").focus();
