/**
 * A client of a rendezvous server: a mailbox in which two devices leave each other a message, for a few minutes.
 * Copy this file; it needs nothing else, and runs from Chrome 116, Firefox 124, Safari 17.4 on. It speaks MSC3886 and
 * MSC4108, and MSC4388 in its newest text; the server's answer to a GET of the collection tells which.
 *
 *     const here = await Rendezvous.create("https://matrix.example.com/_synapse/client/rendezvous", "hello");
 *     show(here.url); // as a QR code
 *     const answer = await here.receive();
 *
 *     const there = await Rendezvous.join(scannedUrl); // on the other device
 *     const hello = await there.receive();
 *     await there.send("it is me");
 *
 * What a client must know:
 *
 * - There is one payload at a time. Who writes replaces it: take turns, or write all that the other has not read yet.
 * - Each write names the revision that it follows (`If-Match`, or `sequence_token`). If the other device wrote in between,
 *   it is refused (`Conflict`): receive, then send again.
 * - The server, and whoever knows the URL, can read and replace payloads. Encrypt, and compare a code by eye.
 * - The life of a session is fixed at its creation; writing does not prolong it.
 */

const POLL_MS = 1000; // between two questions, where the server does not wait
const TRIES = 4; // of a request whose answer is lost: at once, then after 1, 2 and 4 seconds
const PATIENCE_MS = 20_000; // for an answer, beyond the time that the server was asked to wait
const PASSING = [502, 503, 504]; // the server, or a proxy before it, is in trouble that may pass

/** The other device has written since this one read: receive, then send again. */
export class Conflict extends Error {}

/** The session is over: its time is up, or a device ended it. */
export class Ended extends Error {}

/** The server refuses. `status` and the message say why; `retryAfter`, if known, in how many seconds to try again. */
export class Refused extends Error {
  constructor(status, retryAfter, message) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** No answer came, not even to the last try. Browsers do not tell whether the server is gone or lacks CORS headers. */
export class Unreachable extends Error {}

/**
 * One request, as an observer sees it: once when it is sent, and once more when it is over, which is when it has `ms`.
 * Without `status`, no answer came; `waitMs` is how long the server may hold it, `tag` is that of the revision answered
 * (its ETag or `sequence_token`), `payload` what is written, and `text` what was read.
 * @typedef {{method: string, url: string, payload?: string, waitMs: number, started: number, ms?: number,
 *   status?: number, tag?: string, text?: string, cancelled?: boolean}} Exchange
 */

/** MSC3886 and MSC4108: a payload is the content as it is, and has an ETag. */
const tags = {
  post: (url, payload) => ({ url, headers: { "Content-Type": "text/plain" }, body: payload }),
  sessionUrl: (collectionUrl, { text, location }) => new URL(JSON.parse(text).url ?? location, collectionUrl).href,
  // With `If-Match` it is safe to send it again: the server answers a repetition as it answered the first.
  put: (url, tag, payload) => ({ url, headers: { "Content-Type": "text/plain", "If-Match": tag }, body: payload }),
  // A server that waits takes the tag in the query as well. For the field, browsers would send a preflight each time.
  get: (url, tag, waitMs) =>
    waitMs
      ? { url: `${url}?${new URLSearchParams({ if_none_match: opaque(tag), timeout: waitMs })}`, headers: {} }
      : { url, headers: tag ? { "If-None-Match": tag } : {} },
  revision: ({ etag, expires, text }) => ({ tag: etag, expires: expires && new Date(expires), payload: text }),
};

/** MSC4388: a payload is text in JSON, and has a `sequence_token`; each write has a transaction id. */
const tokens = {
  post: (url, data) => ({ url, headers: { "Content-Type": "application/json" }, body: JSON.stringify({ data }) }),
  sessionUrl: (collectionUrl, { text }) => `${collectionUrl.replace(/\/$/, "")}/${JSON.parse(text).id}`,
  // By the transaction id the server knows a write that is sent again, whatever has been written since.
  put: (url, token, data) => ({
    url: `${url}/${random()}`,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ sequence_token: token, data }),
  }),
  get: (url, token, waitMs) => ({
    url: token ? `${url}?${new URLSearchParams({ sequence_token: token, timeout: waitMs })}` : url,
    headers: {},
  }),
  revision({ text }) {
    const { sequence_token: tag, expires_in_ms: leftMs, data } = JSON.parse(text);
    return { tag, expires: leftMs === undefined ? undefined : new Date(Date.now() + leftMs), payload: data };
  },
};

export class Rendezvous {
  /** @type {string} The session's URL: all that the other device needs. */
  url;
  /** @type {Date} When the session ends, by the server's clock. To be shown: only the server knows when it is over. */
  expires;

  #observer;
  #dialect = tags;
  #tag; // of the last revision read or written here
  #known = new Set(); // those of all of them
  #maxWaitMs = 0;
  #sending = Promise.resolve(); // settles when nothing is being sent
  #unsettled; // the write of which nobody knows whether it took place
  #cancelling = new AbortController();

  /** Use `create` or `join`. */
  constructor({ observer } = {}) {
    this.#observer = observer;
  }

  /**
   * Makes a session.
   * @param {string} collectionUrl where the server makes sessions
   * @param {string} payload the first payload
   * @param {{observer?: (exchange: Exchange) => void}} [options]
   * @returns {Promise<Rendezvous>}
   * @throws {Refused} 429: too many, or the server is full; 403: not for everybody; 413: the payload is too long
   * @throws {Unreachable}
   */
  static async create(collectionUrl, payload, options) {
    const session = new Rendezvous(options);
    await session.#discover(collectionUrl);
    // Where the answer is lost, it is sent again. The first session, if there is one, ends unused.
    const answer = await session.#request("POST", session.#dialect.post(collectionUrl, payload), { payload });
    session.url = session.#dialect.sessionUrl(collectionUrl, answer);
    session.#follow(answer.revision);
    // A homeserver may have sent us on from where the session was made.
    if (session.#collectionUrl !== collectionUrl.replace(/\/$/, "")) await session.#discover(session.#collectionUrl);
    return session;
  }

  /**
   * Joins a session that another device made. `receive` then gives its payload at once.
   * @param {string} sessionUrl
   * @param {{observer?: (exchange: Exchange) => void}} [options]
   * @returns {Promise<Rendezvous>}
   * @throws {Refused} 429: too often; 502 to 504: the server is in trouble
   * @throws {Unreachable}
   */
  static async join(sessionUrl, options) {
    const session = new Rendezvous(options);
    session.url = sessionUrl;
    await session.#discover(session.#collectionUrl);
    return session;
  }

  /**
   * Replaces the payload. One that was left without an answer before goes first.
   * @param {string} payload
   * @throws {Conflict} the other device wrote first; it may have read this, where it had to be sent more than once
   * @throws {Ended}
   * @throws {Refused} 429: too often, or too much; 413: too long
   * @throws {Unreachable} it may have arrived all the same; sent again, it arrives once
   */
  send(payload) {
    return this.#inTurn(() => this.#replace(payload));
  }

  /**
   * Waits for the next payload of the other device.
   * @param {{signal?: AbortSignal}} [options] `signal` gives up waiting
   * @returns {Promise<string>}
   * @throws {Ended | Refused}
   * @throws {Unreachable} to go on later, receive again
   */
  async receive({ signal } = {}) {
    signal = AbortSignal.any([this.#cancelling.signal, ...(signal ? [signal] : [])]);
    for (;;) {
      const started = performance.now();
      const known = this.#tag;
      const waitMs = known ? this.#maxWaitMs : 0;
      try {
        const request = this.#dialect.get(this.url, known, waitMs);
        const { status, revision } = await this.#request("GET", request, { waitMs, signal });
        const isNews = () => status === 200 && !this.#known.has(opaque(revision.tag));
        // What ended the waiting may be a write of our own, whose tag is not known before; by now perhaps not the last.
        await this.#inTurn(() => isNews() && this.#settle());
        if (isNews()) {
          this.#follow(revision);
          return revision.payload;
        }
        // A server that does not wait, or has no place for it, answers at once: then ask each second.
        const isKnown = status === 304 || opaque(revision.tag) === opaque(known);
        if (isKnown) await pause(started + POLL_MS - performance.now(), signal);
      } catch (error) {
        if (error.status !== 429) throw error;
        await pause(1000 * (error.retryAfter ?? 1), signal);
      }
    }
  }

  /** Ends the session, for both devices. What waits in `receive` or `send` throws `Ended`. */
  async cancel() {
    this.#cancelling.abort(new Ended("The session was ended on this device."));
    await this.#request("DELETE", { url: this.url }).catch((error) => {
      if (!(error instanceof Ended)) throw error;
    });
  }

  async #replace(payload) {
    if (!this.#tag) throw new Error("Receive before you send: a write names the revision that it follows.");
    if (this.#unsettled && this.#unsettled.payload !== payload) await this.#write(this.#unsettled);
    await this.#write(this.#unsettled ?? { ...this.#dialect.put(this.url, this.#tag, payload), payload });
  }

  /** Learns whether a write that was left without an answer took place. It cannot any more: the tag has changed. */
  async #settle() {
    if (!this.#unsettled) return;
    await this.#write(this.#unsettled).catch((error) => {
      if (!(error instanceof Conflict)) throw error;
    });
  }

  /** Sends a PUT. If no answer decides what became of it, it is to be sent again, as it is, before any other. */
  async #write(request) {
    try {
      const { revision } = await this.#request("PUT", request, {
        payload: request.payload,
        signal: this.#cancelling.signal,
      });
      this.#unsettled = undefined;
      this.#follow(revision);
    } catch (error) {
      const isOpen = error instanceof Unreachable || [429, ...PASSING].includes(error.status);
      this.#unsettled = isOpen && request.isLost ? request : undefined;
      throw error;
    }
  }

  /** Does something after what is being sent, and before what is sent later. */
  #inTurn(task) {
    const done = this.#sending.then(task);
    this.#sending = done.catch(() => {});
    return done;
  }

  #follow({ tag, expires }) {
    if (!tag) throw new Error("The ETag cannot be read: the server does not expose it, or an extension hides it.");
    this.#tag = tag;
    this.#known.add(opaque(tag));
    this.expires = expires ?? this.expires;
  }

  get #collectionUrl() {
    return this.url.replace(/\/[^/]*$/, "");
  }

  /** Learns which protocol the server speaks there, and how long it lets a request wait. Others do not say. */
  async #discover(collectionUrl) {
    try {
      const { text } = await this.#request("GET", { url: collectionUrl });
      const offer = JSON.parse(text);
      this.#maxWaitMs = offer.max_wait_ms ?? 0;
      if ("create_available" in offer) this.#dialect = tokens;
    } catch (error) {
      if (error instanceof Unreachable || [429, ...PASSING].includes(error.status)) throw error; // later it may say
    }
  }

  /**
   * Sends a request, again where its answer is lost, and returns what was answered if that is a success. Where one
   * was lost, `request.isLost` says so.
   */
  async #request(method, request, { payload, waitMs = 0, signal = AbortSignal.any([]) } = {}) {
    const { url, headers, body } = request;
    for (let tries = 1; ; tries++) {
      signal.throwIfAborted();
      const exchange = { method, url, payload, waitMs, started: performance.now() };
      this.#observer?.(exchange);
      let retryAfter;
      try {
        const deadline = AbortSignal.any([signal, AbortSignal.timeout(waitMs + PATIENCE_MS)]);
        const response = await fetch(url, { method, headers, body, cache: "no-store", signal: deadline });
        const text = await response.text();
        Object.assign(exchange, { status: response.status, text });
        retryAfter = Number(response.headers.get("Retry-After")) || undefined; // in seconds
        if (response.ok || response.status === 304) {
          const [etag, location, expires] = ["ETag", "Location", "Expires"].map(
            (name) => response.headers.get(name) ?? undefined,
          );
          const revision = this.#dialect.revision({ etag, expires, text });
          Object.assign(exchange, { tag: revision.tag, text: revision.payload ?? text });
          return { status: response.status, text, location, revision };
        }
      } catch {
        exchange.cancelled = signal.aborted;
      } finally {
        exchange.ms = performance.now() - exchange.started;
        this.#observer?.(exchange);
      }
      signal.throwIfAborted();
      if (exchange.status === undefined || PASSING.includes(exchange.status)) {
        request.isLost = true;
        if (tries < TRIES) {
          await pause(1000 * (retryAfter ?? 2 ** (tries - 1)), signal);
          continue;
        }
        if (exchange.status === undefined) throw new Unreachable(`${new URL(url).host} does not answer.`);
      }
      if (exchange.status === 404 && this.url && url.startsWith(this.url)) throw new Ended("The session is over.");
      if ([409, 412].includes(exchange.status)) throw new Conflict("The other device wrote first.");
      throw new Refused(exchange.status, retryAfter, reason(exchange));
    }
  }
}

/** A tag without what proxies that compress add to it: W/"abc" or "abc-gzip" is still the revision "abc". */
function opaque(etag) {
  return etag?.replace(/^W\/|"|[-;]+(gzip|br|zstd|deflate)(?="?$)/g, "") ?? null;
}

/** 128 random bits. Nobody can use one by accident that somebody else has used. */
function random() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function reason({ method, status, text }) {
  try {
    return JSON.parse(text).error; // as all answers of Matrix
  } catch {
    return `${method} was answered with ${status}.`; // by something else, such as a proxy
  }
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal.addEventListener("abort", stop);
    if (signal.aborted) stop();
  });
}
