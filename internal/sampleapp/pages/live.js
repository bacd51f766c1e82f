"use strict";

const at = (id) => document.getElementById(id);

function show(id, state, text) {
  at(id).dataset.state = state;
  at(id).textContent = text;
}

// The WebSocket: every message comes back. It is opened again on demand only, so that
// one that was closed from the other side is seen to be closed.
let socket;
let waiting = [];

function connect() {
  socket = new WebSocket(new URL("/ws", location.href.replace(/^http/, "ws")));
  show("ws-state", "", "connecting");
  socket.onopen = () => {
    show("ws-state", "on", "open");
    for (const text of waiting.splice(0)) socket.send(text);
  };
  socket.onmessage = (event) => {
    const line = document.createElement("li");
    line.textContent = event.data;
    at("ws-log").prepend(line);
    while (at("ws-log").children.length > 3) at("ws-log").lastChild.remove();
  };
  socket.onclose = (event) => {
    waiting = [];
    show("ws-state", "off", `closed (${event.code}${event.reason ? ", " + event.reason : ""})`);
  };
}

at("ws-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("ws-text").value;
  if (socket.readyState === WebSocket.OPEN) {
    socket.send(text);
    return;
  }
  waiting.push(text);
  if (socket.readyState !== WebSocket.CONNECTING) connect();
});

// The event stream. A browser takes it up again by itself, unless it was refused.
const events = new EventSource("/events");
show("sse-state", "", "connecting");
events.onopen = () => show("sse-state", "on", "open");
events.onmessage = (event) => {
  const { count, user, node } = JSON.parse(event.data);
  at("sse-count").textContent = count;
  at("sse-from").textContent = `from ${node}${user ? " for " + user : ""}`;
};
events.onerror = () => {
  const refused = events.readyState === EventSource.CLOSED;
  show("sse-state", "off", refused ? "refused" : "interrupted, trying again");
};

connect();
