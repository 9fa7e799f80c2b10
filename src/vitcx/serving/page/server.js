// What the page asks of its server, and the token that the server may want.

let token = "";  // kept while the page is open, and nowhere else

const at = (id) => document.getElementById(id);

/** The user left the dialog without a token. */
export class NoToken extends Error {}

/** An answer of the server, once it is no error; asks for a token where one is wanted. */
export async function ask(path, options = {}) {
  for (;;) {
    const headers = { ...options.headers }, used = token;
    if (used) headers.Authorization = `Bearer ${inLatin1(used)}`;
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer. Is it still running?");
    }
    if (response.status === 401) {
      if (token === used) {  // else another request has had a new one in the meantime
        token = "";
        token = await askToken(used !== "");
      }
      continue;
    }
    if (!response.ok) throw new Error(await told(response));
    return response;
  }
}

// A header has bytes; the server compares with the token's UTF-8.
function inLatin1(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

async function told(response) {
  let sentence;
  try { sentence = (await response.json()).error; } catch { sentence = null; }
  sentence ||= `the server answered ${response.status}`;
  return `${sentence[0].toUpperCase()}${sentence.slice(1)}.`;
}

let asked = null;  // one dialog, however many requests wait for it

function askToken(wrong) {
  asked ??= new Promise((done, fail) => {
    const dialog = at("token-dialog"), input = at("token");
    input.value = "";
    input.setAttribute("aria-invalid", String(wrong));
    dialog.returnValue = "";
    dialog.showModal();
    // Filled in an open dialog, so that it is read out.
    at("token-wrong").textContent = wrong ? "The server did not accept this token. Try again." : "";
    dialog.addEventListener("close", () => {
      asked = null;
      const given = input.value.trim();
      input.value = "";
      if (dialog.returnValue === "go" && given) done(given);
      else fail(new NoToken("No token was given, so the server was not asked."));
    }, { once: true });
  });
  return asked;
}

at("token-cancel").addEventListener("click", () => at("token-dialog").close(""));
