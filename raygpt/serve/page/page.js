"use strict";
const facts = JSON.parse(document.body.dataset.facts);
const at = (id) => document.getElementById(id);
const output = at("output"), prompt = at("prompt");
const TOP = 5; // alternatives shown beside a token
let talk = []; // the conversation of the chat, as the protocol has it
let running = null; // AbortController of the request under way
let tokens = []; // spans of the page's tokens, in order
let chosen = -1;

function make(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function mode() { return at("mode-chat").checked ? "chat" : "completion"; }

function turnMode() {
  const chat = mode() === "chat";
  prompt.placeholder = chat ? "Say something" : "Once upon a time";
  at("hint").textContent = chat ? "Enter sends" : "Ctrl+Enter sends";
  clear();
}

function clear() {
  if (running) running.abort();
  talk = []; tokens = []; chosen = -1;
  output.replaceChildren(make("p", "start", mode() === "chat"
    ? "Ask the model something. Its answer is shown as it is written."
    : "Begin a text, and the model goes on with it as it is written."));
  at("status").textContent = "";
  fail("");
}

function fail(text) {
  at("error").textContent = text;
  at("error").hidden = !text;
}

function number(id) {
  const value = at(id).value.trim();
  return value === "" ? null : Number(value);
}

function request(text) {
  const body = { model: facts.model, stream: true, stream_options: { include_usage: true } };
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    const value = number(name);
    if (value !== null) body[name] = value;
  }
  if (mode() === "completion") return ["/v1/completions", { ...body, prompt: text, logprobs: TOP }];
  return ["/v1/chat/completions", {
    ...body, messages: [...talk, { role: "user", content: text }], logprobs: true, top_logprobs: TOP,
  }];
}

// One shape for both kinds: [{text, logprob, top: [[text, logprob], ...]}, ...]
function scores(choice) {
  const found = choice.logprobs;
  if (!found) return [];
  if (found.content) {
    return found.content.map((one) => ({
      text: one.token, logprob: one.logprob, top: one.top_logprobs.map((other) => [other.token, other.logprob]),
    }));
  }
  return found.tokens.map((text, index) => ({
    text, logprob: found.token_logprobs[index],
    top: Object.entries(found.top_logprobs[index] || {}).sort((one, two) => two[1] - one[1]),
  }));
}

function append(turn, text, scored) {
  const wholes = scored.map((one) => one.text).join("") === text;
  const parts = wholes ? scored.map((one) => [one.text, [one]]) : [[text, scored]];
  for (const [piece, said] of parts) {
    if (!piece && !said.length) continue;
    const span = make("span", "tok", piece);
    if (said.length) {
      const worst = Math.exp(Math.min(...said.map((one) => one.logprob)));
      span.style.setProperty("--a", (0.55 * (1 - worst) ** 2).toFixed(3));
      span.said = said;
      if (piece) tokens.push(span);
    }
    turn.append(span);
  }
}

function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return (share >= 10 ? share.toFixed(0) : share >= 0.1 ? share.toFixed(1) : "<0.1") + " %";
}

function visible(text) {
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "·") || "∅";
}

function choose(span) {
  if (chosen >= 0 && tokens[chosen]) tokens[chosen].classList.remove("chosen");
  chosen = tokens.indexOf(span);
  span.classList.add("chosen");
  const tables = span.said.map((one) => {
    const table = make("table");
    const rows = one.top.some(([text]) => text === one.text) ? one.top : [...one.top, [one.text, one.logprob]];
    for (const [text, logprob] of rows) {
      const row = make("tr", text === one.text ? "taken" : "");
      const name = make("td", "name", visible(text));
      const bar = make("span");
      bar.style.setProperty("--p", Math.exp(logprob).toFixed(4));
      name.append(bar);
      row.append(name, make("td", "share", percent(logprob)));
      table.append(row);
    }
    table.setAttribute("aria-label", `Token ${visible(one.text)}: ${percent(one.logprob)}`);
    return table;
  });
  at("token").replaceChildren(...tables);
}

async function* events(reader) {
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

async function refusal(response) {
  let text = `${response.status} ${response.statusText}`;
  try { text = (await response.json()).error.message || text; } catch { /* no JSON: the status says it */ }
  const later = response.headers.get("Retry-After");
  return later ? `${text} (in ${later} s)` : text;
}

async function send() {
  const text = prompt.value;
  if (running || !text.trim()) return;
  fail("");
  const [path, body] = request(text);
  const chat = mode() === "chat";
  if (chat && !talk.length || !chat) output.replaceChildren();
  if (!chat) { tokens = []; chosen = -1; }
  const turn = make("div", "turn answer");
  if (chat) output.append(make("div", "turn user", text)); else turn.append(make("span", "prompt-text", text));
  output.append(turn);
  turn.classList.add("writing");
  running = new AbortController();
  at("send").disabled = true; at("stop").disabled = false;
  const own = running, began = performance.now();
  let answer = "", count = 0, ending = "", first = 0;
  at("status").textContent = "Waiting…";
  try {
    const headers = { "Content-Type": "application/json" };
    if (at("key").value) headers.Authorization = `Bearer ${at("key").value}`;
    const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal: own.signal });
    if (!response.ok) throw new Error(await refusal(response));
    for await (const data of events(response.body.getReader())) {
      if (data === "[DONE]") { ending = ending || "Done"; break; }
      const piece = JSON.parse(data);
      if (piece.error) throw new Error(piece.error.message);
      if (piece.usage) count = piece.usage.completion_tokens;
      const choice = piece.choices[0];
      if (!choice) continue;
      const part = (chat ? choice.delta.content : choice.text) || "";
      const scored = scores(choice);
      const low = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
      append(turn, part, scored);
      answer += part;
      if (!piece.usage) count += scored.length;
      if (count && !first) first = performance.now();
      if (choice.finish_reason === "length") ending = "Max tokens reached";
      at("status").textContent = `Writing… ${count} tokens`;
      if (low) output.scrollTop = output.scrollHeight;
    }
    if (!ending) throw new Error("The connection ended before the answer did.");
    const seconds = (performance.now() - began) / 1000;
    at("status").textContent = `${ending}: ${count} tokens, ${(count / seconds).toFixed(1)} tok/s`;
  } catch (error) {
    if (own.signal.aborted) at("status").textContent = `Stopped: ${count} tokens`;
    else { fail(error.message); at("status").textContent = ""; }
  } finally {
    turn.classList.remove("writing");
    if (running === own) running = null;
    at("send").disabled = false; at("stop").disabled = true;
  }
  if (!output.contains(turn)) return; // cleared meanwhile
  if (chat && answer) {
    talk.push({ role: "user", content: text }, { role: "assistant", content: answer });
    prompt.value = "";
  } else if (chat) {
    turn.remove();
  }
  prompt.focus();
}

at("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
at("stop").addEventListener("click", () => running && running.abort());
at("clear").addEventListener("click", () => { clear(); prompt.focus(); });
at("shade").addEventListener("change", () => output.classList.toggle("shaded", at("shade").checked));
for (const one of document.getElementsByName("mode")) one.addEventListener("change", turnMode);
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  if (event.ctrlKey || event.metaKey || (mode() === "chat" && !event.shiftKey)) { event.preventDefault(); send(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && running) running.abort(); });
for (const kind of ["mouseover", "click"]) {
  output.addEventListener(kind, (event) => { if (event.target.said && event.target.textContent) choose(event.target); });
}
output.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step || !tokens.length) return;
  event.preventDefault();
  choose(tokens[Math.min(Math.max(chosen + step, 0), tokens.length - 1)]);
  tokens[chosen].scrollIntoView({ block: "nearest" });
});

at("key-field").hidden = !facts.needsKey;
at("mode-chat").disabled = !facts.chat;
at(facts.chat ? "mode-chat" : "mode-completion").checked = true;
if (!facts.chat) document.querySelector("label[for=mode-chat]").title = "this model has no chat template";
output.classList.add("shaded");
turnMode();
