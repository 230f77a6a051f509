/** What the page's client sends, as a table that a person can follow, and a count. */

const SHOWN = 100; // rows
const UNTIL_SHOWN_AS_WAITING_MS = 300;

export class Traffic {
  #rows = new Map(); // of the requests that have no answer yet
  #reads = 0;
  #requests = 0;
  #firstReadAt; // by performance.now()
  #lastReadAt;
  #known; // the tag that was last seen
  #written; // the payload that this device wrote last

  /**
   * @param {{list: HTMLTableSectionElement, requests: HTMLElement, reads: HTMLElement, polls: HTMLElement,
   *   payload: HTMLElement, collectionUrls: string[]}} parts where rows and numbers go, and what is no session
   */
  constructor(parts) {
    this.parts = parts;
    setInterval(() => this.#tick(), 250);
  }

  /** The observer of a Rendezvous. */
  observe = (exchange) => {
    if (exchange.ms === undefined) this.#sent(exchange);
    else this.#over(exchange);
  };

  /** Forgets what was counted, for a new session. The rows stay. */
  restart() {
    this.#reads = this.#requests = 0;
    this.#firstReadAt = this.#lastReadAt = undefined;
    this.#recount();
  }

  #sent(exchange) {
    const row = document.createElement("tr");
    const cells = ["method", "status", "tag", "ms", "meaning"].map((name) => {
      const cell = row.insertCell();
      cell.className = name;
      return cell;
    });
    cells[0].textContent = exchange.method;
    this.#rows.set(exchange, row);
    this.parts.list.prepend(row);
    while (this.parts.list.rows.length > SHOWN) this.parts.list.lastElementChild.remove();
    this.#requests++;
    this.#written = exchange.payload ?? this.#written;
    if (this.#isRead(exchange)) {
      this.#reads++;
      this.#firstReadAt ??= exchange.started;
    }
    this.#recount();
  }

  #over(exchange) {
    const row = this.#rows.get(exchange);
    this.#rows.delete(exchange);
    const [, status, tag, ms, meaning] = row.cells;
    row.className = exchange.status === undefined ? (exchange.cancelled ? "" : "lost") : `s${exchange.status}`;
    status.textContent = exchange.status ?? "–";
    tag.textContent = shortened(exchange.tag);
    tag.title = exchange.tag ?? "";
    ms.textContent = Math.round(exchange.ms);
    meaning.textContent = this.#meaning(exchange);
    this.#known = exchange.tag ?? this.#known;
    if (this.#isRead(exchange)) this.#lastReadAt = performance.now();
    const stored = exchange.payload ?? exchange.text; // a write is seen there, too, and what was read
    if (this.#isPayload(exchange)) this.parts.payload.textContent = stored;
    this.#recount();
  }

  #tick() {
    for (const [exchange, row] of this.#rows) {
      const waited = performance.now() - exchange.started;
      if (!exchange.waitMs || waited < UNTIL_SHOWN_AS_WAITING_MS) continue;
      row.className = "held";
      row.cells[1].textContent = "waits";
      row.cells[3].textContent = Math.round(waited);
      const [progress] = row.getElementsByTagName("progress");
      if (progress) {
        progress.value = waited;
      } else {
        const bar = document.createElement("progress");
        bar.max = exchange.waitMs;
        bar.ariaLabel = `of ${exchange.waitMs / 1000} seconds`;
        row.cells[4].replaceChildren("the server holds it until there is news", bar);
      }
    }
    if (this.#rows.size) this.#recount();
  }

  #recount() {
    const asks = [...this.#rows.keys()].some((exchange) => this.#isRead(exchange));
    const until = asks ? performance.now() : this.#lastReadAt;
    const polls = this.#firstReadAt === undefined ? 0 : 1 + Math.floor((until - this.#firstReadAt) / 1000);
    this.parts.requests.textContent = this.#requests;
    this.parts.reads.textContent = this.#reads;
    this.parts.polls.textContent = polls;
  }

  #isRead({ method, url }) {
    return method === "GET" && !this.#isCollection(url);
  }

  #isPayload({ method, url, status }) {
    return status < 300 && method !== "DELETE" && !(method === "GET" && this.#isCollection(url));
  }

  #isCollection(url) {
    return this.parts.collectionUrls.includes(url);
  }

  #meaning({ method, url, status, tag, text, cancelled }) {
    if (status === undefined) return cancelled ? "given up" : "no answer";
    const other = tag === this.#known ? "nothing new" : "news from the other device";
    const news = text === this.#written ? "what this device wrote" : other;
    const known = {
      200: {
        GET: this.#isCollection(url) ? "what the server offers" : news,
        POST: "session made",
        PUT: "written",
        DELETE: "session ended",
      },
      201: { POST: "session made" },
      202: { PUT: "written" },
      204: { DELETE: "session ended" },
      304: { GET: "nothing new" },
      404: { GET: "session is over", PUT: "session is over", DELETE: "was over already" },
      409: { PUT: "the other device wrote first" },
      412: { PUT: "the other device wrote first" },
    };
    const refused = { 403: "not allowed", 413: "too long", 429: "asked to come back later" };
    return known[status]?.[method] ?? refused[status] ?? "trouble on the way";
  }
}

function shortened(tag) {
  return tag ? tag.replace(/^((?:W\/)?.{7}).*(.)$/, "$1…$2") : "";
}
