/** The page: its steps, and what it says where something goes wrong. */

import { Channel, Taken, Tampered } from "./channel.js";
import { Ended, Refused, Unreachable } from "./rendezvous.js";
import { Traffic } from "./traffic.js";

const { collection, qr, certificate } = document.documentElement.dataset;
const element = (id) => document.getElementById(id);
const every = (selector) => document.querySelectorAll(selector);
const collections = Array.from(element("dialect").options, (option) => option.value);
const traffic = new Traffic({
  list: element("list"),
  requests: element("requests"),
  reads: element("reads"),
  polls: element("polls"),
  payload: element("payload"),
  collectionUrls: collections,
});

let channel; // while a session lives
let again; // what "Try again" does
let confirmed = false; // whether the person has compared the codes
let held = []; // messages that came before
let ending = false; // whether this device ends the session
let losing = false; // whether the notice says that answers do not arrive

/** Shows one step and no other, and moves the focus to where a person goes on. */
function show(step, title, status, focused = element("title")) {
  for (const part of every("[data-step]")) part.hidden = part.dataset.step !== step;
  for (const item of every("#progress li")) {
    if (item.dataset.for.split(" ").includes(step)) item.ariaCurrent = "step";
    else item.ariaCurrent = null;
  }
  element("pairing").dataset.now = step;
  element("title").textContent = title;
  element("status").textContent = status;
  notice("");
  tell();
  focused.focus();
}

function notice(text, isLoss = false) {
  losing = isLoss;
  element("notice").textContent = text;
  element("notice").hidden = !text;
}

function over(title, text) {
  channel = undefined;
  show("over", title, text);
}

/** Says what happened, and what to do now. */
function explain(error, retry) {
  if (error instanceof Ended) {
    if (ending) return; // `end` says so
    if (channel && Date.now() > channel.session.expires - 2000) {
      over("The time is over", "A session lives for a fixed time, however much is written. Make a new one to go on.");
    } else if (channel) {
      over("The session was ended", "The other device did, or the server was started anew. Make a new one to go on.");
    } else {
      over("There is no such session", "It is over, or the link is not complete. Make a new one on the other device.");
    }
  } else if (error instanceof Refused) {
    if (error.status === 429) later(error, retry);
    else over("The server refuses", `It says: ${error.message}`);
  } else if (error instanceof Unreachable) {
    again = retry;
    const { host } = new URL(collection);
    show("stuck", "The server does not answer", `Does ${host} run, and is the network there? Nothing is lost yet.`);
    element("stuck-certificate").hidden = !certificate;
    element("again").disabled = false;
    element("again").textContent = "Try again";
  } else if (error instanceof Taken) {
    over("The link has been used", "It works once, and it was opened before. Make a new session, here or there.");
  } else if (error instanceof Tampered) {
    channel?.session.cancel().catch(() => {});
    over("Somebody else wrote", "What came is not from the other device, so this page has ended the session.");
  } else {
    over("Something unforeseen happened", String(error));
    throw error;
  }
}

/** The server asks to come back later: counts down, then lets the person try again. */
function later({ retryAfter = 1, message }, retry) {
  again = retry;
  show("stuck", "The server asks you to wait", `It says: ${message}. Nothing is lost; you can try again soon.`);
  element("stuck-certificate").hidden = true;
  const button = element("again");
  const ready = performance.now() + 1000 * retryAfter;
  const tick = () => {
    const seconds = Math.ceil((ready - performance.now()) / 1000);
    button.disabled = seconds > 0;
    button.textContent = seconds > 0 ? `Try again in ${seconds} s` : "Try again";
    if (seconds > 0) setTimeout(tick, 250);
  };
  tick();
}

const options = {
  observer(exchange) {
    traffic.observe(exchange);
    if (exchange.status === 409 || exchange.status === 412) {
      notice(
        "Both devices wrote at the same moment, and the server took the other's. " +
          "Nothing is lost: this page reads that first, then writes yours again.",
      );
    } else if (exchange.status !== undefined) {
      if (losing) notice("");
    } else if (exchange.ms !== undefined && !exchange.cancelled) {
      notice("No answer; trying again.", true);
    }
  },
};

function start() {
  show("start", "Start here", "");
}

async function offer() {
  traffic.restart();
  ending = confirmed = false;
  held = [];
  show("meet", "Making a session", "One moment …");
  try {
    channel = await Channel.offer(element("dialect").value, options);
  } catch (error) {
    return explain(error, offer);
  }
  const link = new URL(`#${await channel.invitation()}`, location.href).href;
  element("link").value = element("open").href = link;
  if (qr) element("qr").src = `qr.svg?${new URLSearchParams({ text: link })}`;
  element("qr").hidden = !qr;
  element("no-qr").hidden = Boolean(qr);
  show("invite", "Scan this with the other device", "Waiting for it …");
  return meet();
}

async function meet() {
  try {
    await channel.meet();
  } catch (error) {
    return explain(error, () => {
      show("invite", "Scan this with the other device", "Waiting for it …");
      meet();
    });
  }
  compare();
  return listen();
}

async function accept() {
  show("meet", "Meeting the other device", "One moment …");
  const invitation = new URLSearchParams(location.hash.slice(1));
  const [session, key] = [invitation.get("session") ?? "", invitation.get("key") ?? ""];
  if (!collections.some((url) => session.startsWith(`${url}/`)) || !key) {
    return over("This link leads elsewhere", "It is not complete, or was made for another homeserver.");
  }
  try {
    channel = await Channel.accept(session, key, options);
  } catch (error) {
    return explain(error, accept);
  }
  compare();
  return listen();
}

function compare() {
  element("code").textContent = channel.code;
  show("compare", "Compare the codes", "Does the other device show the same code?");
}

async function listen() {
  try {
    for await (const text of channel.messages()) {
      if (confirmed) say(text, "there");
      else held.push(text);
    }
  } catch (error) {
    explain(error, resume);
  }
}

/** Goes on where it was, with the same session. */
function resume() {
  if (confirmed) talk();
  else compare();
  listen();
}

function talk() {
  show("talk", "You are connected", "Only your two devices can read what you write here.", element("text"));
  for (const text of held.splice(0)) say(text, "there");
}

/** A message, as text and nothing else. */
function say(text, side) {
  const item = document.createElement("li");
  item.className = side;
  const who = document.createElement("span");
  who.textContent = side === "here" ? "This device: " : "The other device: ";
  who.className = "unseen";
  item.append(who, text);
  element("messages").append(item);
  item.scrollIntoView({ block: "nearest" });
}

async function write(attempt) {
  try {
    await attempt();
  } catch (error) {
    // Of all else, `listen` learns as well, and says so.
    if (!(error instanceof Refused)) return;
    const seconds = error.retryAfter ?? 1;
    notice(`The server asks to wait (${error.status}: ${error.message}). The message goes out in ${seconds} s.`);
    setTimeout(() => channel && write(() => channel.write()), 1000 * seconds);
  }
}

async function end(title, text, { session } = channel) {
  ending = true;
  try {
    await session.cancel();
  } catch (error) {
    return explain(error, () => end(title, text, { session }));
  }
  return over(title, text);
}

function tell() {
  const left = channel?.session.expires && Math.max(0, Math.round((channel.session.expires - Date.now()) / 1000));
  element("clock").hidden = left === undefined;
  if (left === undefined) return;
  const time = `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}`;
  element("clock").textContent = `This session ends in ${time}.`;
}

element("create").addEventListener("click", offer);
element("restart").addEventListener("click", () => {
  element("messages").replaceChildren();
  history.replaceState(null, "", location.pathname); // this device begins anew, and makes the session itself
  offer();
});
element("again").addEventListener("click", () => again());
element("copy").addEventListener("click", async () => {
  element("link").select();
  try {
    await navigator.clipboard.writeText(element("link").value);
    notice("The link is copied.");
  } catch {
    notice("This browser does not let pages copy; the link is selected.");
  }
});
element("match").addEventListener("click", () => {
  confirmed = true;
  talk();
});
element("differ").addEventListener("click", () =>
  end("The session is ended", "Where the codes differ, somebody is in between. Scan again, from the screen itself."),
);
const endHere = () => end("You ended the session", "It is deleted, and the other device learns of it.");
for (const button of every(".end")) button.addEventListener("click", endHere);
element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = element("text").value;
  element("text").value = "";
  notice("");
  say(text, "here");
  write(() => channel.send(text));
});
for (const host of every(".host")) host.textContent = new URL(collection).host;
for (const link of every(".collection")) link.href = collection;
for (const part of every(".certificate")) part.hidden = !certificate;
addEventListener("hashchange", () => location.reload()); // another invitation was opened in this tab
setInterval(tell, 500);

if (location.hash.length > 1) accept();
else start();
