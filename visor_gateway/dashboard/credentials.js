// Signs requests: VISOR-HMAC-SHA256 with keys, or a bearer token (docs/protocol.md, Signatures).
// The secret is turned into a key that can't be read back, and kept in this page's memory alone.

const bytes = (text) => new TextEncoder().encode(text);
const base64 = (buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer)));

export async function digest(body) {
  return `sha-256=:${base64(await crypto.subtle.digest("SHA-256", body))}:`;
}

export class Keys {
  static async of(accessKey, secretKey) {
    if (!globalThis.crypto?.subtle) {
      throw new Error("Browsers sign only on pages loaded over https or from this host. Sign in with a token.");
    }
    const algorithm = { name: "HMAC", hash: "SHA-256" };
    return new Keys(accessKey, await crypto.subtle.importKey("raw", bytes(secretKey), algorithm, false, ["sign"]));
  }

  constructor(accessKey, key) {
    this.accessKey = accessKey;
    this.key = key;
  }

  // Adds date, nonce, digest and signature to `headers`, whose names are in lower case.
  async sign(method, target, headers, json) {
    headers["x-visor-date"] = new Date().toUTCString();
    if (method !== "GET" && method !== "HEAD") {
      headers["x-visor-nonce"] = crypto.randomUUID();
    }
    if (json !== undefined) {
      headers["content-digest"] = await digest(json);
    }
    const text = canonicalText(method, target, headers);
    const signature = base64(await crypto.subtle.sign("HMAC", this.key, text));
    headers.authorization = `VISOR-HMAC-SHA256 ${this.accessKey}:${signature}`;
  }
}

// The bytes that are signed. Values of headers are one character a byte, as fetch wants them.
function canonicalText(method, target, headers) {
  const lines = {
    "content-digest": headers["content-digest"] ?? "",
    "content-md5": "",
    "content-type": headers["content-type"] ?? "",
    date: headers["x-visor-date"],
    "x-visor-nonce": headers["x-visor-nonce"] ?? "",
  };
  for (const [name, value] of Object.entries(headers)) {
    if (name.startsWith("x-image-meta-")) {
      lines[name] = `${name}:${value}`;
    }
  }
  const [path, query] = target.split("?", 2);
  const end = query === undefined ? path : `${path}?${query.split("&").sort().join("&")}`;
  const text = [method, ...Object.keys(lines).sort().map((name) => lines[name]), end].join("\n");
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

export class Token {
  constructor(text) {
    this.text = text;
  }

  async sign(method, target, headers) {
    headers.authorization = `Bearer ${this.text}`;
  }
}
