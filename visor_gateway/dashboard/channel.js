// The live channel, read as Server-Sent Events by fetch: a browser can sign that, and it resumes by the last id.

const PAUSES = [500, 1000, 2000, 4000, 8000]; // ms before the next try
const SILENCE = 25000; // ms without a message, two heartbeats and some, after which the connection is given up

export class Channel {
  // `heard(message)` gets every message; `changed(state, why)` gets "live", "lost", "drain" or "out".
  constructor(api, heard, changed) {
    this.api = api;
    this.heard = heard;
    this.changed = changed;
    this.lastId = undefined;
    this.closed = false;
    this.abort = undefined;
  }

  async run() {
    for (let failures = 0; !this.closed; failures += 1) {
      try {
        await this.listen(() => (failures = 0));
        this.changed("lost", "The connection ended");
      } catch (error) {
        if (error.status === 403) {
          this.changed("out", error.message);
          return;
        }
        if (!this.closed) {
          this.changed("lost", error.message);
        }
      }
      await new Promise((resolve) => setTimeout(resolve, PAUSES[Math.min(failures, PAUSES.length - 1)]));
    }
  }

  close() {
    this.closed = true;
    this.abort?.abort();
  }

  async listen(begun) {
    this.abort = new AbortController();
    const headers = this.lastId === undefined ? {} : { "last-event-id": this.lastId };
    const response = await this.api.call("GET", "/transfers/events", undefined, { headers, signal: this.abort.signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ; ) {
      const watchdog = setTimeout(() => this.abort.abort(), SILENCE);
      const { done, value } = await reader.read();
      clearTimeout(watchdog);
      if (done) {
        return;
      }
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      events.forEach((event) => this.take(event));
      begun();
    }
  }

  take(event) {
    let message;
    for (const line of event.split("\n")) {
      if (line.startsWith("data: ")) {
        message = JSON.parse(line.slice(6));
      } else if (line.startsWith("id: ")) {
        this.lastId = line.slice(4);
      }
    }
    if (message.type === "hello") {
      this.changed("live");
    } else if (message.type === "bye") {
      this.changed(message.reason === "drain" ? "drain" : "lost", message.reason);
    }
    this.heard(message);
  }
}
