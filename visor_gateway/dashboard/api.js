// Requests to the gateway that served this page.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// A header's value may hold any text; fetch takes it as one character a byte.
export const headerText = (text) => String.fromCharCode(...new TextEncoder().encode(text));

export class Api {
  constructor(credentials) {
    this.credentials = credentials;
  }

  async get(target) {
    return (await this.call("GET", target)).json();
  }

  async send(method, target, json) {
    return (await this.call(method, target, json)).json();
  }

  // The response, once its head is there. Raises Refused where it is no success.
  async call(method, target, json, { headers = {}, signal } = {}) {
    const body = json === undefined ? undefined : new TextEncoder().encode(JSON.stringify(json));
    const signed = { ...headers, ...(body && { "content-type": "application/json" }) };
    await this.credentials.sign(method, target, signed, body);
    const response = await fetch(target, { method, headers: signed, body, signal, cache: "no-store", redirect: "error" });
    if (!response.ok) {
      throw new Refused(response.status, await reason(response));
    }
    return response;
  }

  // Uploads a file as a new image. `progress` is told how many bytes have left.
  async upload(fields, file, progress) {
    const headers = { "content-type": "application/octet-stream" };
    for (const [name, value] of Object.entries(fields)) {
      headers[`x-image-meta-${name}`] = headerText(value);
    }
    await this.credentials.sign("POST", "/images", headers);
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", "/images");
      for (const [name, value] of Object.entries(headers)) {
        request.setRequestHeader(name, value);
      }
      request.upload.onprogress = (event) => progress(event.loaded);
      request.onerror = () => reject(new Error("The connection broke"));
      request.onload = () =>
        request.status === 200
          ? resolve(JSON.parse(request.responseText).image)
          : reject(new Refused(request.status, message(request.responseText)));
      request.send(file);
    });
  }
}

async function reason(response) {
  return message(await response.text()) || `${response.status} ${response.statusText}`;
}

function message(text) {
  try {
    return JSON.parse(text).message;
  } catch {
    return "";
  }
}
