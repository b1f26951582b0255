"use strict";

// The matrix of the cluster: a row per node, from that node's own answer, which the daemon asks for
// while the page is open. Cells are coloured by state whatever they show.

const clusterInterval = 4000; // ms
const cluster = {
  kind: "state", // shown in the cells
  page: 0,
  answer: null,
  bytes: new Map(), // by ID: time and bytes of its last two rows
  cell: null, // [from, to] that was clicked
};

// pageSize is the number of nodes whose cells fit the window.
const pageSize = () => innerWidth < 600 ? 10 : innerWidth < 1000 ? 16 : 24;

// selfID returns the ID of this node: its subnet.
const selfID = () => view.status.lease?.subnet || view.status.lease?.subnet6 || "";

// clusterNodes returns the IDs of all nodes: this one, then the others, those with a problem first.
function clusterNodes() {
  const self = selfID();
  return [self, ...sorted(view.nodes, "state").map(n => n.id).filter(id => id && id !== self)];
}

// shownNodes returns the IDs of the nodes of the current page.
function shownNodes() {
  const all = clusterNodes(), size = pageSize();
  cluster.page = Math.min(cluster.page, Math.ceil(all.length / size) - 1);
  return all.slice(cluster.page * size, (cluster.page + 1) * size);
}

// pathState classifies a path as describe does.
function pathState(p) {
  if (p.unreachable || p.refused || p.sent && p.lost === p.sent) return "bad";
  if (!p.sent) return "unknown";
  return p.lost || p.small_mtu ? "warn" : "ok";
}

// ratesOf returns the rates of a node's paths by the other node, from its last two rows.
function ratesOf(id) {
  const rows = cluster.bytes.get(id) || [];
  if (rows.length < 2) return new Map();
  const [before, now] = rows, seconds = (now.time - before.time) / 1000;
  return new Map([...now.bytes].map(([to, b]) => {
    const was = before.bytes.get(to);
    return [to, { out: rate(b.out, was?.out, seconds), in: rate(b.in, was?.in, seconds) }];
  }));
}

// remember keeps the counters of a row for rates.
function remember(id, row) {
  const time = Date.parse(row.time), rows = cluster.bytes.get(id) || [];
  if (rows.length && rows.at(-1).time >= time) return;
  const bytes = new Map(row.paths.filter(p => p.out_bytes !== undefined)
    .map(p => [p.id, { out: p.out_bytes, in: p.in_bytes }]));
  cluster.bytes.set(id, [...rows, { time, bytes }].slice(-2));
}

// short formats a number for a cell: at most four characters.
function short(v) {
  if (v === undefined) return "–";
  for (const unit of ["", "k", "M", "G"]) {
    if (v < 999.5 || unit === "G") return `${v < 9.95 && v >= 0.05 ? v.toFixed(1) : Math.round(v)}${unit}`;
    v /= 1000;
  }
}

// cellText returns the text of a cell.
function cellText(p, r) {
  const state = pathState(p);
  switch (cluster.kind) {
    case "rtt": return p.rtt_seconds ? short(p.rtt_seconds * 1000) : signs[state];
    case "loss": return p.sent ? String(Math.round(100 * p.lost / p.sent)) : signs[state];
    case "rate": return r?.out === undefined ? "–" : short(r.out * 8);
  }
  return signs[state];
}

const kindUnits = { state: "", rtt: "in ms", loss: "in %", rate: "out, in bit/s" };

// pathText describes a path in words.
function pathText(from, to, p, r) {
  const words = [];
  if (p.unreachable) words.push(`unreachable: ${p.unreachable}`);
  if (p.refused) words.push(`refused: ${p.refused}`);
  if (p.sent) words.push(`RTT ${duration(p.rtt_seconds)}`, `${percent(p.lost / p.sent)} of ${p.sent} echoes lost`);
  else words.push("not probed");
  if (p.mtu) words.push(`MTU ${p.mtu}${p.small_mtu ? ", too small" : ""}`);
  if (r && r.out !== undefined) words.push(`out ${bits(r.out)}`, `in ${bits(r.in)}`);
  else if (p.out_bytes === undefined) words.push("rate not counted by this backend");
  return `${from} → ${to}: ${words.join(" · ")}`;
}

// clusterRow draws the answer of a node. nodes has the names of the columns by ID.
function clusterRow(answer, number, nodes) {
  const { id, name, row } = answer;
  const head = element("button", { type: "button", title: answer.error || name }, `${number} ${name}`);
  if (id === selfID()) head.setAttribute("disabled", "");
  head.addEventListener("click", () => select(name));
  const state = answer.error ? "warn" : row && !row.ready ? "bad" : "";
  const tr = element("tr", {}, element("th", { scope: "row", class: state }, head));
  if (!row) {
    tr.append(element("td", { colspan: nodes.size, class: "silent" }, answer.error));
    return tr;
  }
  const paths = new Map(row.paths.map(p => [p.id, p])), rates = ratesOf(id);
  for (const [to, toName] of nodes) {
    const p = paths.get(to);
    if (to === id) {
      tr.append(element("td", { class: "self" }));
    } else if (p) {
      tr.append(clusterCell([id, to], pathText(name, toName, p, rates.get(to)), pathState(p), cellText(p, rates.get(to))));
    } else if (row.left_out) {
      tr.append(clusterCell([id, to], `${name} has more paths than its answer`, "unknown", "?"));
    } else {
      tr.append(clusterCell([id, to], `${name} does not know ${toName}`, "bad", "✕"));
    }
  }
  return tr;
}

function clusterCell(ends, text, state, short) {
  const cell = element("td", { class: state, title: text, "data-from": ends[0], "data-to": ends[1], tabindex: 0 }, short);
  if (cluster.cell?.join() === ends.join()) byID("cluster-cell").textContent = text;
  const choose = () => { cluster.cell = ends; drawCluster(); };
  cell.addEventListener("click", choose);
  cell.addEventListener("keydown", e => { if (e.key === "Enter") choose(); });
  return cell;
}

function drawCluster() {
  const a = cluster.answer;
  if (!a) return;
  const nodes = new Map(a.rows.map(r => [r.id, r.name])), shown = [...nodes.keys()], all = clusterNodes(), size = pageSize();
  show(byID("pages"), all.length > size);
  const first = all.indexOf(shown[0]) + 1;
  byID("page-text").textContent = [
    all.length > size && `nodes ${count(first)} to ${count(first + shown.length - 1)} of ${count(all.length)}, those with a problem first`,
    kindUnits[cluster.kind]].filter(x => x).join(" · ");
  byID("cluster").replaceChildren(
    element("thead", {}, element("tr", {}, element("th", {}, "from \\ to"),
      ...[...nodes.values()].map((n, i) => element("th", { scope: "col", title: n }, String(first + i))))),
    element("tbody", {}, ...a.rows.map((r, i) => clusterRow(r, first + i, nodes))));
  show(byID("cluster-cell"), cluster.cell);
  show(byID("cluster-note"), a.note);
  byID("cluster-note").textContent = a.note || "";
  drawOwnRow();
}

// drawOwnRow shows the selected node's own answer in its detail.
function drawOwnRow() {
  const a = cluster.answer?.rows.find(r => r.name === view.selected), box = byID("detail-row");
  if (!a) { box.replaceChildren(); return; }
  if (!a.row) { box.replaceChildren(element("p", { class: "notice warn" }, a.error)); return; }
  const own = a.row.paths, broken = own.filter(p => pathState(p) === "bad");
  box.replaceChildren(element("h3", {}, "Its own answer"),
    element("p", { class: `notice ${a.row.ready && !broken.length ? "ok" : "bad"}` },
      a.row.ready ? `ready, reaches ${count(own.length - broken.length)} of ${count(own.length)} nodes` : "not ready"),
    ...(a.row.conditions || []).map(c => element("p", { class: "notice bad" }, `${c.name}: ${c.reason || "not met"}`)),
    ...broken.slice(0, 5).map(p => element("p", { class: "notice bad" }, pathText(a.name, p.node, p))));
}

let clusterTimer = 0; // of the next question
let clusterTurn = 0; // of the last question; the answer of an earlier one is not shown

async function askCluster() {
  clearTimeout(clusterTimer);
  const turn = ++clusterTurn;
  try {
    if (view.status && !document.hidden) {
      const query = new URLSearchParams(shownNodes().map(id => ["node", id]));
      const answer = await fetch(`v1/cluster?${query}`, { cache: "no-store" });
      if (!answer.ok) throw new Error(`HTTP status ${answer.status}`);
      const rows = await answer.json();
      if (turn !== clusterTurn) return;
      cluster.answer = rows;
      for (const r of cluster.answer.rows) if (r.row) remember(r.id, r.row);
      drawCluster();
    }
  } catch (e) {
    if (turn !== clusterTurn) return;
    show(byID("cluster-note"), true);
    byID("cluster-note").textContent = `No matrix: ${e.message}`;
  }
  clusterTimer = setTimeout(askCluster, view.status ? clusterInterval : 100);
}

function turnPage(by) {
  cluster.page = Math.max(0, cluster.page + by);
  askCluster();
}

byID("page-back").addEventListener("click", () => turnPage(-1));
byID("page-next").addEventListener("click", () => turnPage(1));
for (const b of byID("kinds").querySelectorAll("button")) {
  b.addEventListener("click", () => {
    cluster.kind = b.dataset.kind;
    for (const o of byID("kinds").querySelectorAll("button")) o.setAttribute("aria-pressed", o === b);
    drawCluster();
  });
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) askCluster(); });
askCluster();
