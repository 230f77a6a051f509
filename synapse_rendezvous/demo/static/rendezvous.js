/**
 * A client of a rendezvous server: a mailbox in which two devices leave each other a message, for a few minutes.
 * Copy this file; it needs nothing else. It speaks MSC3886 and MSC4108, from Chrome 116, Firefox 124, Safari 17.4 on.
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
 * - Each write names the revision that it follows (`If-Match`). If the other device wrote in between, it is refused
 *   (`Conflict`): receive, then send again.
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
 * Without `status`, no answer came; `waitMs` is how long the server may hold it, `etag` is of the revision answered.
 * @typedef {{method: string, url: string, payload?: string, waitMs: number, started: number, ms?: number,
 *   status?: number, etag?: string, text?: string, cancelled?: boolean}} Exchange
 */

export class Rendezvous {
  /** @type {string} The session's URL: all that the other device needs. */
  url;
  /** @type {Date} When the session ends, by the server's clock. To be shown: only the server knows when it is over. */
  expires;

  #observer;
  #etag; // of the last revision read or written here
  #known = new Set(); // those of all of them
  #maxWaitMs = 0;
  #sending = Promise.resolve(); // settles when nothing is being sent
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
    // Where the answer is lost, it is sent again. The first session, if there is one, ends unused.
    const answer = await session.#request("POST", collectionUrl, { payload });
    const { url } = JSON.parse(answer.text);
    session.url = new URL(url ?? answer.location, collectionUrl).href;
    session.#follow(answer.etag);
    await session.#learnMaxWait();
    return session;
  }

  /**
   * Joins a session that another device made. `receive` then gives its payload at once.
   * @param {string} sessionUrl
   * @param {{observer?: (exchange: Exchange) => void}} [options]
   * @returns {Promise<Rendezvous>}
   * @throws {Unreachable}
   */
  static async join(sessionUrl, options) {
    const session = new Rendezvous(options);
    session.url = sessionUrl;
    await session.#learnMaxWait();
    return session;
  }

  /**
   * Replaces the payload.
   * @param {string} payload
   * @throws {Conflict} the other device wrote first; it may have read this, where it had to be sent more than once
   * @throws {Ended}
   * @throws {Refused} 429: too often, or too much; 413: too long
   * @throws {Unreachable} it may have arrived all the same
   */
  send(payload) {
    const sent = this.#sending.then(() => this.#replace(payload));
    this.#sending = sent.catch(() => {});
    return sent;
  }

  /**
   * Waits for the next payload of the other device.
   * @param {{signal?: AbortSignal}} [options] `signal` gives up waiting
   * @returns {Promise<string>}
   * @throws {Ended | Refused}
   * @throws {Unreachable} to go on later, receive again
   */
  async receive({ signal } = {}) {
    const waitMs = this.#maxWaitMs;
    const url = waitMs ? `${this.url}?timeout=${waitMs}` : this.url;
    signal = AbortSignal.any([this.#cancelling.signal, ...(signal ? [signal] : [])]);
    for (;;) {
      const started = performance.now();
      const headers = this.#etag ? { "If-None-Match": this.#etag } : {};
      try {
        const answer = await this.#request("GET", url, { headers, waitMs: this.#etag ? waitMs : 0, signal });
        // What ended the waiting may be a write of our own, whose tag is not known before; by now perhaps not the last.
        await this.#sending;
        if (answer.status === 200 && !this.#known.has(opaque(answer.etag))) {
          this.#follow(answer.etag);
          return answer.text;
        }
        // A server that does not wait, or has no place for it, answers at once: then ask each second.
        if (answer.status === 304) await pause(started + POLL_MS - performance.now(), signal);
      } catch (error) {
        if (error.status !== 429) throw error;
        await pause(1000 * (error.retryAfter ?? 1), signal);
      }
    }
  }

  /** Ends the session, for both devices. What waits in `receive` or `send` throws `Ended`. */
  async cancel() {
    this.#cancelling.abort(new Ended("The session was ended on this device."));
    await this.#request("DELETE", this.url).catch((error) => {
      if (!(error instanceof Ended)) throw error;
    });
  }

  async #replace(payload) {
    if (!this.#etag) throw new Error("Receive before you send: a write names the revision that it follows.");
    // `If-Match` makes it safe to send it again: the server answers a repetition as it answered the first.
    const headers = { "If-Match": this.#etag };
    const { etag } = await this.#request("PUT", this.url, { headers, payload, signal: this.#cancelling.signal });
    this.#follow(etag);
  }

  #follow(etag) {
    if (!etag) throw new Error("The ETag cannot be read: the server does not expose it, or an extension hides it.");
    this.#etag = etag;
    this.#known.add(opaque(etag));
  }

  async #learnMaxWait() {
    try {
      // Not where the session was made: a homeserver may only have sent us on from there.
      const { text } = await this.#request("GET", new URL(".", this.url).href);
      this.#maxWaitMs = JSON.parse(text).max_wait_ms ?? 0;
    } catch (error) {
      if (error instanceof Unreachable) throw error; // others do not offer it
    }
  }

  /** Sends a request, again where its answer is lost, and returns what was answered if that is a success. */
  async #request(method, url, { headers = {}, payload, waitMs = 0, signal = AbortSignal.any([]) } = {}) {
    if (payload !== undefined) headers = { ...headers, "Content-Type": "text/plain" };
    for (let tries = 1; ; tries++) {
      signal.throwIfAborted();
      const exchange = { method, url, payload, waitMs, started: performance.now() };
      this.#observer?.(exchange);
      let retryAfter;
      try {
        const deadline = AbortSignal.any([signal, AbortSignal.timeout(waitMs + PATIENCE_MS)]);
        const response = await fetch(url, { method, headers, body: payload, cache: "no-store", signal: deadline });
        exchange.text = await response.text();
        exchange.status = response.status;
        exchange.etag = response.headers.get("ETag") ?? undefined;
        retryAfter = Number(response.headers.get("Retry-After")) || undefined; // in seconds
        if (response.headers.has("Expires")) this.expires = new Date(response.headers.get("Expires"));
        if (response.ok || response.status === 304) {
          return { ...exchange, location: response.headers.get("Location") };
        }
      } catch {
        exchange.cancelled = signal.aborted;
      } finally {
        exchange.ms = performance.now() - exchange.started;
        this.#observer?.(exchange);
      }
      signal.throwIfAborted();
      if (exchange.status === undefined || PASSING.includes(exchange.status)) {
        if (tries < TRIES) {
          await pause(1000 * (retryAfter ?? 2 ** (tries - 1)), signal);
          continue;
        }
        if (exchange.status === undefined) throw new Unreachable(`${new URL(url).host} does not answer.`);
      }
      if (exchange.status === 404 && url.startsWith(this.url)) throw new Ended("The session is over.");
      if (exchange.status === 412) throw new Conflict("The other device wrote first.");
      throw new Refused(exchange.status, retryAfter, reason(exchange));
    }
  }
}

/** A tag without what proxies that compress add to it: W/"abc" or "abc-gzip" is still the revision "abc". */
function opaque(etag) {
  return etag?.replace(/^W\/|"|[-;]+(gzip|br|zstd|deflate)(?="?$)/g, "") ?? null;
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
