// Signs in, connects, and shows one section at a time.

import { Api } from "./api.js";
import { CacheView } from "./cache.js";
import { Channel } from "./channel.js";
import { Keys, Token } from "./credentials.js";
import { HistoryView } from "./history.js";
import { Catalogue } from "./images.js";
import { Model } from "./model.js";
import { TransfersView } from "./transfers.js";

const SECTIONS = ["transfers", "images", "history", "cache"];
const CONNECTION = {
  live: "live",
  lost: "connection lost",
  drain: "stopping",
  out: "signed out",
};
const find = (id) => document.getElementById(id);

const model = new Model();
let session;

class Session {
  constructor(api) {
    this.api = api;
    this.catalogue = new Catalogue(api, act);
    const nameOf = (id) => this.catalogue.nameOf(id);
    this.transfers = new TransfersView(model, api, act, nameOf);
    this.history = new HistoryView(api, act, nameOf);
    this.cache = new CacheView(api, act, nameOf);
    this.channel = new Channel(api, (message) => this.hear(message), showConnection);
  }

  async begin() {
    const { session } = await this.api.get("/session");
    await this.catalogue.load();
    this.channel.run();
    if (session.role === "admin") {
      find("cache-link").hidden = false;
      await this.transfers.showGatewayLimit();
    }
  }

  hear(message) {
    model.apply(message);
    this.transfers.refresh();
  }

  end() {
    this.channel.close();
    this.transfers.close();
    this.catalogue.close();
    this.history.close();
    this.cache.close();
    model.transfers.clear();
    model.throughput.length = 0;
  }
}

// Runs what a person asked for, and says why it failed.
async function act(work) {
  find("notice").hidden = true;
  try {
    await work();
  } catch (error) {
    say(error.message);
  }
}

function say(text) {
  find("notice").textContent = text;
  find("notice").hidden = false;
}

function showConnection(state, why) {
  const shown = find("connection");
  // A drain ends the connection: what is told of it stays until the next one stands.
  if (shown.dataset.state === "drain" && state === "lost") return;
  shown.dataset.state = state;
  shown.textContent = CONNECTION[state];
  if (state === "drain") {
    say("The gateway is stopping: transfers go on to their ends, and this page waits for it to come back.");
  } else if (state === "lost") {
    say("The connection to the gateway is lost. What is shown is as it was; the page keeps trying.");
  } else if (state === "live") {
    find("notice").hidden = true;
  } else if (state === "out") {
    signOut();
    find("sign-in-error").textContent = why ?? "";
  }
}

// --- signing in and out ---

for (const choice of document.querySelectorAll("input[name=with]")) {
  choice.onchange = () => {
    const token = choice.value === "token";
    find("with-token").hidden = !token;
    find("with-keys").hidden = token;
  };
}

find("sign-in").onsubmit = async (event) => {
  event.preventDefault();
  find("sign-in-error").textContent = "";
  try {
    session = new Session(new Api(await credentials()));
    await session.begin();
  } catch (error) {
    session = undefined;
    find("sign-in-error").textContent = error.message;
    return;
  }
  find("secret-key").value = find("token").value = "";
  find("welcome").hidden = true;
  find("work").hidden = find("sign-out").hidden = false;
  showSection();
};

async function credentials() {
  const token = document.querySelector("input[name=with]:checked").value === "token";
  return token ? new Token(find("token").value.trim()) : Keys.of(find("access-key").value.trim(), find("secret-key").value);
}

function signOut() {
  session?.end();
  session = undefined;
  find("work").hidden = find("sign-out").hidden = find("gateway-limit").hidden = true;
  find("cache-link").hidden = true;
  find("welcome").hidden = false;
  find("connection").dataset.state = "out";
  find("connection").textContent = CONNECTION.out;
}

find("sign-out").onclick = signOut;

// --- sections ---

function showSection() {
  const wanted = SECTIONS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "transfers";
  for (const name of SECTIONS) {
    find(name).hidden = name !== wanted;
    const link = document.querySelector(`nav a[href="#${name}"]`);
    link.toggleAttribute("aria-current", name === wanted);
    if (name === wanted) link.setAttribute("aria-current", "page");
  }
  if (session && wanted === "images") act(() => session.catalogue.load());
  if (session && wanted === "history") act(() => session.history.load());
  if (session && wanted === "cache") act(() => session.cache.load());
}

window.onhashchange = showSection;
