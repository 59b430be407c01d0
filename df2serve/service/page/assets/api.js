// The service: requests with the key, events, uploads with their progress, files.

const KEY = "df2serve-key";
const RETRY_MS = 1000;

/** What the service says is wrong. */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ? `${body.title}: ${body.detail}` : body.title ?? `The service answers ${status}.`);
    this.status = status;
    this.code = body.code;
  }
}

const headers = (more = {}) => {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
};

let asking = null;

/** Ask for the key; all requests that wait for one share the question. */
export function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key-dialog");
    const input = document.getElementById("key-input");
    const hadKey = sessionStorage.getItem(KEY) !== null;
    document.getElementById("key-wrong").textContent = hadKey ? "The key in use is not valid." : "";
    input.value = "";
    dialog.returnValue = "";
    document.getElementById("key-later").onclick = () => dialog.close();
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "use" && input.value.trim();
      if (given) sessionStorage.setItem(KEY, given);
      document.getElementById("key-button").hidden = false;
      asking = null;
      resolve(Boolean(given));
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

/** Forget the key and ask for another one. */
export function changeKey() {
  sessionStorage.removeItem(KEY);
  return askForKey();
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

async function problemOf(answer) {
  return new Problem(answer.status, await answer.json().catch(() => ({})));
}

/** Fetch; whoever is not let in is asked for a key. */
export async function request(path, { more, ...options } = {}) {
  for (;;) {
    const answer = await fetch(path, { ...options, headers: headers(more) }).catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new Error("The service cannot be reached.");
    });
    if (answer.ok) return answer;
    if (answer.status !== 401 || !(await askForKey())) throw await problemOf(answer);
  }
}

export const read = async (path, options) => (await request(path, options)).json();

/** Yield the events of a job until its end, with a new connection where one breaks. */
export async function* events(path, signal) {
  let last = "";
  while (!signal.aborted) {
    try {
      const more = { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) };
      const answer = await request(path, { more, signal });
      for await (const event of parsed(answer.body)) {
        last = event.id;
        yield JSON.parse(event.data);
        if (event.event === "end") return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem) throw error;
    }
    await new Promise((done) => setTimeout(done, RETRY_MS));
  }
}

/** Yield the fields of every event of a stream. */
async function* parsed(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (text + value).replaceAll("\r\n", "\n").split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const fields = Object.fromEntries(
          block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]),
        );
        if (fields.data) yield fields;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Send a form; fetch does not tell how far it is. */
export async function upload(path, form, { progressed, signal }) {
  for (;;) {
    const { status, body } = await send(path, form, progressed, signal);
    if (status < 400) return body;
    if (status !== 401 || !(await askForKey())) throw new Problem(status, body);
  }
}

function send(path, form, progressed, signal) {
  return new Promise((resolve, reject) => {
    const sender = new XMLHttpRequest();
    sender.open("POST", path);
    sender.responseType = "json";
    for (const [name, value] of Object.entries(headers())) sender.setRequestHeader(name, value);
    sender.upload.addEventListener("progress", ({ loaded, total }) => progressed(loaded, total));
    sender.addEventListener("load", () => resolve({ status: sender.status, body: sender.response ?? {} }));
    sender.addEventListener("error", () => reject(new Error("The images could not be sent.")));
    sender.addEventListener("abort", () => reject(new DOMException("cancelled", "AbortError")));
    signal.addEventListener("abort", () => sender.abort());
    sender.send(form);
  });
}

/** Show a file of the service in a picture; the browser forgets it when `signal` is aborted. */
export async function show(picture, path, signal) {
  const address = URL.createObjectURL(await (await request(path, { signal })).blob());
  signal.addEventListener("abort", () => URL.revokeObjectURL(address));
  if (signal.aborted) URL.revokeObjectURL(address);
  else picture.src = address;
}

/** Save a file of the service; a link alone cannot send the key. */
export async function save(path, name, more) {
  const address = URL.createObjectURL(await (await request(path, { more })).blob());
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}
