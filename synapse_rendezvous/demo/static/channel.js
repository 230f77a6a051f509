/**
 * A secure channel for two devices, on a rendezvous server that is not trusted.
 *
 * One device offers: it makes a key pair and a session, and shows the session's URL and the public key as a QR code.
 * The other accepts: it makes a key pair, and writes the public key. Both derive the same keys (ECDH on P-256, HKDF) and
 * a code, which people compare by eye. The code follows from the shared secret, so who gets in between, the server
 * too, has one chance in a million that both devices show the same. From then on, messages are encrypted (AES-GCM).
 *
 * A payload holds all messages of its writer that the other device has not confirmed to have read. So nothing is lost
 * when one device writes several times before the other reads.
 *
 * This shows how it is done. To sign in to Matrix, use the secure channel that MSC4108 or MSC4388 specifies.
 */

import { Conflict, Rendezvous } from "./rendezvous.js";

const CURVE = { name: "ECDH", namedCurve: "P-256" };
const MANY = 4; // messages of the other device that one payload repeats, before this one confirms them

/** Another device has accepted this offer already. */
export class Taken extends Error {}

/** Somebody who does not have the keys has written into the session. */
export class Tampered extends Error {}

export class Channel {
  /** @type {Rendezvous} */
  session;
  /** @type {string} The code to compare by eye; there once both have met. */
  code;

  #side; // "a" offers, "b" accepts
  #keys; // this device's key pair; the private one cannot be read, not even by this page
  #peer; // the other device's public key
  #boxes; // what encrypts this device's messages, and what decrypts the other's
  #unread = []; // this device's messages that the other has not confirmed
  #sent = 0;
  #received = 0;
  #unwritten = false;

  /** Use `offer` or `accept`. */
  constructor(side, keys) {
    this.#side = side;
    this.#keys = keys;
  }

  /** Makes a session, and waits for nobody yet. `options` are those of Rendezvous. */
  static async offer(collectionUrl, options) {
    const channel = new Channel("a", await crypto.subtle.generateKey(CURVE, false, ["deriveBits"]));
    channel.session = await Rendezvous.create(collectionUrl, await channel.#payload(), options);
    return channel;
  }

  /** Returns what the other device needs, for the fragment of a link. Nothing in it is secret. */
  async invitation() {
    const url = this.session.url.replace(/[%&#+]/g, encodeURIComponent); // the rest may stand, which keeps it short
    return `session=${url}&key=${await publicKey(this.#keys)}`;
  }

  /** Waits for the device that accepts. */
  async meet() {
    const { key } = this.#read(await this.session.receive());
    await this.#derive(key);
  }

  /** Accepts an offer: the session and the public key of its invitation. `options` are those of Rendezvous. */
  static async accept(sessionUrl, key, options) {
    const channel = new Channel("b", await crypto.subtle.generateKey(CURVE, false, ["deriveBits"]));
    channel.session = await Rendezvous.join(sessionUrl, options);
    const { peer } = channel.#read(await channel.session.receive());
    if (peer) throw new Taken("Another device has accepted.");
    await channel.#derive(key);
    try {
      await channel.session.send(await channel.#payload());
    } catch (error) {
      throw error instanceof Conflict ? new Taken("Another device was quicker.") : error;
    }
    return channel;
  }

  /** Yields the other device's messages, until the session is over. To go on after an error, begin again. */
  async *messages() {
    if (this.#unwritten) await this.write();
    for (;;) {
      const payload = this.#read(await this.session.receive());
      this.#unread = this.#unread.filter(({ number }) => number > payload.received);
      for (const { number, box } of payload.messages) {
        if (number !== this.#received + 1) continue; // read before
        const text = await this.#decrypt(number, box);
        this.#received = number;
        yield text;
      }
      if (this.#unwritten || payload.messages.length >= MANY) await this.write();
    }
  }

  /** Sends a message. Where the other device wrote at the same moment, it goes out once that has been read. */
  async send(text) {
    const number = ++this.#sent;
    const box = await this.#encrypt(number, text);
    this.#unread.push({ number, box });
    this.#unread.sort((one, other) => one.number - other.number);
    await this.write();
  }

  /** Writes what the other device has not read. What could not be written is written with the next, or here. */
  async write() {
    try {
      await this.session.send(await this.#payload());
      this.#unwritten = false;
    } catch (error) {
      this.#unwritten = true;
      if (!(error instanceof Conflict)) throw error; // `messages` is about to read what is new, and then writes again
    }
  }

  async #payload() {
    const key = this.#side === "b" ? await publicKey(this.#keys) : undefined;
    const [from, peer, received, messages] = [this.#side, this.#peer, this.#received, this.#unread];
    return JSON.stringify({ from, key, peer, received, messages });
  }

  #read(text) {
    let payload;
    try {
      payload = JSON.parse(text);
    } catch {
      throw new Tampered("This is no payload of this page.");
    }
    if (payload?.from === "b" && this.#side === "b") throw new Taken("Another device has accepted.");
    const known = this.#side === "b" || !this.#peer || payload?.key === this.#peer;
    if (!known || payload?.from === this.#side || !Array.isArray(payload?.messages)) {
      throw new Tampered("This payload is of somebody else.");
    }
    return payload;
  }

  async #derive(peer) {
    this.#peer = peer;
    const own = await publicKey(this.#keys);
    const [a, b] = this.#side === "a" ? [own, peer] : [peer, own];
    let shared;
    try {
      const key = await crypto.subtle.importKey("raw", bytes(peer), CURVE, false, []);
      shared = await crypto.subtle.deriveBits({ name: "ECDH", public: key }, this.#keys.privateKey, 256);
    } catch {
      throw new Tampered("This is no public key.");
    }
    const secret = await crypto.subtle.importKey("raw", shared, "HKDF", false, ["deriveKey", "deriveBits"]);
    // Keys and code are good for these two devices in this session only.
    const hkdf = (purpose) => ({
      name: "HKDF",
      hash: "SHA-256",
      salt: new Uint8Array(),
      info: new TextEncoder().encode(JSON.stringify([purpose, this.session.url, a, b])),
    });
    const box = (side) =>
      crypto.subtle.deriveKey(hkdf(side), secret, { name: "AES-GCM", length: 256 }, false, ["encrypt", "decrypt"]);
    this.#boxes = { a: await box("a"), b: await box("b") };
    const number = new DataView(await crypto.subtle.deriveBits(hkdf("code"), secret, 64)).getBigUint64(0) % 1_000_000n;
    this.code = String(number).padStart(6, "0").replace(/(?=...$)/, " ");
  }

  // Each side has a key of its own and numbers its messages, so no nonce is used twice, and none can be moved.
  async #encrypt(number, text) {
    const sealed = await crypto.subtle.encrypt(nonce(number), this.#boxes[this.#side], new TextEncoder().encode(text));
    return base64url(new Uint8Array(sealed));
  }

  async #decrypt(number, box) {
    try {
      const key = this.#boxes[this.#side === "a" ? "b" : "a"];
      return new TextDecoder().decode(await crypto.subtle.decrypt(nonce(number), key, bytes(box)));
    } catch {
      throw new Tampered("This message is of somebody else.");
    }
  }
}

function nonce(number) {
  const iv = new Uint8Array(12);
  new DataView(iv.buffer).setUint32(8, number);
  return { name: "AES-GCM", iv };
}

async function publicKey(keys) {
  return base64url(new Uint8Array(await crypto.subtle.exportKey("raw", keys.publicKey)));
}

function base64url(array) {
  return btoa(String.fromCharCode(...array)).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

function bytes(text) {
  return Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (character) => character.charCodeAt(0));
}
