// Requests to the server. Errors are ApiError, whose message may be shown as it is.

export class ApiError extends Error {
  constructor(status, message, retryAfter = 0) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

const KEY = 'dis-sam-token';
let token = '';
let askForToken = async () => '';

function stored(value) {
  try {
    if (value === undefined) return sessionStorage.getItem(KEY) ?? '';
    sessionStorage.setItem(KEY, value);
  } catch { /* the browser stores nothing; the token is kept until the page is closed */ }
  return value ?? '';
}

/** Take the token from the address (?token=), which is then cleared of it, or from this tab's storage. */
export function begin(ask) {
  askForToken = ask;
  const address = new URL(location.href);
  const given = address.searchParams.get('token');
  token = given ?? stored();
  if (given !== null) {
    stored(given);
    address.searchParams.delete('token');
    history.replaceState(null, '', address);
  }
}

const headers = () => (token ? { Authorization: `Bearer ${token}` } : {});
const unreachable = () => new ApiError(0, 'The server cannot be reached. Is it still running?');

function explain(status, text, retryAfter) {
  let message = '';
  try { message = JSON.parse(text).detail; } catch { /* not from the server itself, but from a proxy */ }
  message = message || `The server answered with an error (${status}).`;
  if (!/^[^:]*\.\w{2,5}[: ]/.test(message)) message = message[0].toUpperCase() + message.slice(1);  // not names of files
  return new ApiError(status, message, Number(retryAfter) || 0);
}

let asking = null;

/** Ask for the token until the server accepts it; several requests share one question. */
function renewToken() {
  asking ??= (async () => {
    for (let wrong = Boolean(token); ; wrong = true) {
      token = await askForToken(wrong);
      const response = await fetch('api/info', { headers: headers() }).catch(() => { throw unreachable(); });
      if (response.status !== 401) return void stored(token);
    }
  })().finally(() => { asking = null; });
  return asking;
}

/** Send a request; return its Response. Busy answers are repeated after a while. */
export async function call(path, { method = 'GET', body, json, signal, keepalive } = {}) {
  for (let attempt = 0; ; attempt++) {
    let response;
    try {
      response = await fetch(path, {
        method, signal, keepalive,
        headers: { ...headers(), ...(json === undefined ? {} : { 'Content-Type': 'application/json' }) },
        body: json === undefined ? body : JSON.stringify(json),
      });
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      throw unreachable();
    }
    if (response.ok) return response;
    const error = explain(response.status, await response.text(), response.headers.get('Retry-After'));
    if (error.status === 401) await renewToken();
    else if ([429, 503].includes(error.status) && error.retryAfter && attempt < 5) await pause(error.retryAfter, signal);
    else throw error;
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener('abort', () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

/** Upload a photograph; return {id, name, width, height}. `progress` is called with 0..1. */
export async function upload(file, progress) {
  for (;;) {
    const answer = await send(file, progress);
    if (answer.status >= 200 && answer.status < 300) return JSON.parse(answer.text);
    const error = explain(answer.status, answer.text);
    if (error.status !== 401) throw error;
    await renewToken();
  }
}

function send(file, progress) {  // fetch does not tell the progress of an upload
  const form = new FormData();
  form.append('picture', file, file.name || 'picture.png');
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open('POST', 'api/pictures');
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    request.onload = () => resolve({ status: request.status, text: request.responseText });
    request.onerror = () => reject(unreachable());
    request.send(form);
  });
}
