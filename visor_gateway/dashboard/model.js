// What the messages of the live channel add up to, and the throughput of the last minutes.

const ENDED = new Set(["finished", "failed", "cancelled"]);
export const SAMPLES = 300; // one a second
const SPARKS = 40; // rates of one transfer that are kept

export class Model {
  constructor() {
    this.transfers = new Map();
    this.throughput = []; // {store: rate}, the newest last
    setInterval(() => this.sample(), 1000);
  }

  apply(message) {
    if (message.type === "snapshot") {
      const known = this.transfers;
      this.transfers = new Map();
      for (const transfer of message.transfers) {
        this.put(transfer, known.get(transfer.id));
      }
    } else if (message.type === "delta") {
      for (const [id, bytes, rate, eta_s, state, wait] of message.u) {
        const transfer = this.transfers.get(id);
        if (transfer) {
          Object.assign(transfer, { bytes, rate, eta_s, state, wait });
          transfer.told += 1;
          transfer.rates.push(rate);
          transfer.rates.splice(0, transfer.rates.length - SPARKS);
        }
      }
      message.removed.forEach((id) => this.transfers.delete(id));
    } else if (message.type === "event") {
      const transfer = message.transfer;
      if (ENDED.has(transfer.state)) {
        this.transfers.delete(transfer.id);
      } else {
        this.put(transfer, this.transfers.get(transfer.id));
      }
      if (message.kind === "stalled" || message.kind === "retrying") {
        this.transfers.get(transfer.id).note = message.kind;
      }
    }
  }

  put(transfer, known) {
    this.transfers.set(transfer.id, { ...transfer, rates: known?.rates ?? [], told: known?.told ?? 0, note: "" });
  }

  sample() {
    const now = {};
    for (const transfer of this.transfers.values()) {
      const store = transfer.store ?? "none";
      now[store] = (now[store] ?? 0) + transfer.rate;
    }
    this.throughput.push(now);
    this.throughput.splice(0, this.throughput.length - SAMPLES);
  }

  get rate() {
    let sum = 0;
    for (const transfer of this.transfers.values()) {
      sum += transfer.rate;
    }
    return sum;
  }

  // The four waits of all transfers that run, in ms of the last interval.
  get waits() {
    const sum = { client: 0, store: 0, limit: 0, disk: 0 };
    for (const { wait } of this.transfers.values()) {
      for (const kind of Object.keys(sum)) {
        sum[kind] += wait[kind] ?? 0;
      }
    }
    return sum;
  }
}

// What is waited for most, and its share of all waiting; undefined where nothing is.
export function mostly(wait) {
  const all = Object.values(wait).reduce((sum, ms) => sum + ms, 0);
  const [kind, ms] = Object.entries(wait).reduce((most, entry) => (entry[1] > most[1] ? entry : most), ["", 0]);
  return ms > 0 ? { kind, share: ms / all } : undefined;
}
