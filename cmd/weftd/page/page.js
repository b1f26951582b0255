"use strict";

// The page polls the status of the daemon and computes rates from two answers. All text from the
// status is inserted as text, never as markup.

const pollInterval = 2000; // ms
const historyLength = 150; // answers: five minutes
const maxShown = 500; // nodes in the matrix and in the table

const byID = id => document.getElementById(id);
const view = {
  status: null, // last answer
  at: 0, // its time, ms
  rates: new Map(), // by node, of the last two answers
  dropRates: new Map(), // by reason
  history: new Map(), // by node: [{rtt, in, out}]
  sort: "state",
  selected: decodeURIComponent(location.hash.slice(1)),
};

// element makes an element with text or children.
function element(name, attributes, ...children) {
  const e = document.createElement(name);
  for (const [k, v] of Object.entries(attributes || {})) e.setAttribute(k, v);
  e.append(...children);
  return e;
}

function show(e, visible) { e.hidden = !visible; }

function bits(bytesPerSecond) {
  if (bytesPerSecond === undefined) return "–";
  let v = bytesPerSecond * 8;
  for (const unit of ["bit/s", "kbit/s", "Mbit/s", "Gbit/s"]) {
    if (v < 1000 || unit === "Gbit/s") return `${v < 10 && v > 0 ? v.toFixed(1) : Math.round(v)} ${unit}`;
    v /= 1000;
  }
}

function duration(seconds) {
  if (!seconds) return "–";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 0.1) return `${(seconds * 1000).toFixed(1)} ms`;
  return `${Math.round(seconds * 1000)} ms`;
}

const percent = ratio => ratio === undefined ? "–" : `${Math.round(ratio * 100)} %`;
const count = n => n.toLocaleString("en");

function age(time) {
  if (!time) return "never";
  const s = Math.max(0, Math.round((Date.now() - Date.parse(time)) / 1000));
  return s < 120 ? `${s} s ago` : s < 7200 ? `${Math.round(s / 60)} min ago` : `${Math.round(s / 3600)} h ago`;
}

// traffic sums the bytes of each node.
function traffic(status) {
  const sums = new Map();
  for (const n of status.traffic?.nodes || status.kernel_traffic?.nodes || []) {
    const t = sums.get(n.node) || { in: 0, out: 0 };
    t.in += n.in.bytes;
    t.out += n.out.bytes;
    sums.set(n.node, t);
  }
  return sums;
}

// volume returns the bytes carried in all.
function volume(status) {
  if (status.traffic) return { in: status.traffic.in.bytes, out: status.traffic.out.bytes };
  const devices = status.kernel_traffic?.devices || [];
  if (!devices.length) return undefined;
  return {
    in: devices.reduce((sum, d) => sum + d.in.bytes, 0),
    out: devices.reduce((sum, d) => sum + d.out.bytes, 0),
  };
}

const drops = status => new Map((status.traffic?.drops || []).map(d => [d.reason, d.packets]));

// rate returns the rate of a counter between two answers. A restarted daemon starts at zero.
function rate(now, before, seconds) {
  return before === undefined || now < before ? undefined : (now - before) / seconds;
}

function accept(status, at) {
  const seconds = (at - view.at) / 1000, previous = view.status;
  if (previous && seconds > 0) {
    const now = traffic(status), before = traffic(previous);
    view.rates = new Map([...now].map(([name, t]) => [name, {
      in: rate(t.in, before.get(name)?.in, seconds), out: rate(t.out, before.get(name)?.out, seconds),
    }]));
    const a = volume(status), b = volume(previous);
    view.total = a && b && { in: rate(a.in, b.in, seconds), out: rate(a.out, b.out, seconds) };
    const was = drops(previous);
    view.dropRates = new Map([...drops(status)].map(([r, n]) => [r, rate(n, was.get(r), seconds)]));
  }
  view.status = status;
  view.at = at;
  for (const n of view.nodes = (status.nodes || []).map(describe)) {
    const h = view.history.get(n.name) || [];
    h.push({ rtt: n.lastRTT, in: n.in, out: n.out });
    view.history.set(n.name, h.slice(-historyLength));
  }
}

const severity = { bad: 0, warn: 1, unknown: 2, ok: 3 };
const signs = { bad: "✕", warn: "!", unknown: "?", ok: "✓" };

// describe computes the figures of a node. With two families, the worse path counts.
function describe(node) {
  const paths = [node.path, node.path6].filter(p => p);
  const measured = paths.filter(p => p.sent > 0);
  const d = { node, paths, id: node.subnet || node.subnet6, name: node.host || node.name || node.public || node.subnet, ...view.rates.get(node.name) };
  if (measured.length) d.loss = Math.max(...measured.map(p => p.lost / p.sent));
  d.rtt = Math.max(0, ...measured.map(p => p.rtt_median_seconds || 0));
  d.lastRTT = Math.max(0, ...measured.map(p => p.rtt_seconds || 0));
  d.mtu = Math.min(...measured.map(p => p.mtu || Infinity));
  d.smallMTU = measured.some(p => p.mtu && p.mtu < p.max_mtu);
  d.state = node.unreachable ? "bad" : !measured.length ? "unknown" : d.loss > 0 || d.smallMTU ? "warn" : "ok";
  d.text = node.unreachable ? "unreachable" : !measured.length ? "not measured" :
    d.loss > 0 ? `${percent(d.loss)} lost` : d.smallMTU ? `MTU ${d.mtu}` : duration(d.rtt);
  return d;
}

const orders = {
  name: (a, b) => a.name.localeCompare(b.name, "en", { numeric: true }),
  state: (a, b) => severity[a.state] - severity[b.state],
  rtt: (a, b) => b.rtt - a.rtt,
  loss: (a, b) => (b.loss || 0) - (a.loss || 0),
  mtu: (a, b) => a.mtu - b.mtu || 0,
  out: (a, b) => (b.out || 0) - (a.out || 0),
  in: (a, b) => (b.in || 0) - (a.in || 0),
};

function sorted(nodes, by) {
  return nodes.slice().sort((a, b) => orders[by](a, b) || orders.name(a, b));
}

function drawHeader(s) {
  byID("node").textContent = s.node || "weftd";
  document.title = `${s.node || "weftd"}: ${s.ready ? "ready" : "not ready"}`;
  const badge = byID("ready");
  badge.textContent = s.ready ? "ready" : "not ready";
  badge.className = `badge ${s.ready ? "ok" : "bad"}`;
  const subnets = s.lease ? [s.lease.subnet, s.lease.subnet6].filter(x => x).join(" ") : "no lease";
  byID("context").textContent = [`weftd ${s.build.version}`, s.backend, subnets,
    s.interface && `${s.interface.name} ${s.interface.address || s.interface.address6 || ""}`,
    s.mtu && `MTU ${s.mtu}`, s.store && `${s.store.kind}${s.store.connected ? "" : ", not connected"}`,
  ].filter(x => x).join(" · ");
  byID("conditions").replaceChildren(...s.conditions.filter(c => !c.ok || c.reason).map(c =>
    element("li", { class: c.ok ? "warn" : "bad" }, `${c.name}: ${c.reason || "not met"}`)));
}

function drawFigures(s) {
  const nodes = view.nodes, unreachable = nodes.filter(n => n.state === "bad").length;
  const lossy = nodes.filter(n => n.state === "warn").length;
  const dropped = [...view.dropRates.values()].reduce((sum, r) => sum + (r || 0), 0);
  const figures = [
    ["Other nodes", count(nodes.length)], ["Unreachable", count(unreachable)], ["Impaired", count(lossy)],
    ["Out", bits(view.total?.out)], ["In", bits(view.total?.in)],
  ];
  if (s.traffic) figures.push(["Drops per second", dropped.toFixed(dropped < 10 ? 1 : 0)]);
  byID("figures").replaceChildren(...figures.map(([name, value]) =>
    element("div", {}, element("span", {}, name), element("b", {}, value))));
}

function drawMatrix() {
  const nodes = sorted(view.nodes, "state");
  byID("matrix").replaceChildren(...nodes.slice(0, maxShown).map(n => {
    const b = element("button", {
      type: "button", class: n.state, "data-node": n.name, title: n.node.unreachable || n.name,
      "aria-pressed": n.name === view.selected,
    }, element("b", {}, n.name), element("span", {}, `${signs[n.state]} ${n.text}`));
    b.addEventListener("click", () => select(n.name));
    return b;
  }));
  const note = byID("matrix-note");
  show(note, nodes.length > maxShown || !nodes.length);
  note.textContent = nodes.length ? `The ${maxShown} worst of ${count(nodes.length)} nodes.` : "No other nodes.";
}

function drawTable() {
  const words = byID("filter").value.toLowerCase();
  const nodes = sorted(view.nodes, view.sort).filter(n =>
    `${n.name} ${n.node.subnet || ""} ${n.node.subnet6 || ""} ${n.node.public || ""}`.toLowerCase().includes(words));
  const cell = (text, kind = "number") => element("td", { class: kind }, text);
  byID("nodes").replaceChildren(...nodes.slice(0, maxShown).map(n => {
    const row = element("tr", { "data-node": n.name },
      element("td", { title: n.name }, n.name),
      element("td", {}, element("span", { class: `cell ${n.state}`, title: n.node.unreachable || n.text }, signs[n.state])),
      cell(duration(n.rtt)), cell(percent(n.loss), "number wide"), cell(isFinite(n.mtu) ? n.mtu : "–", "number wide"),
      cell(bits(n.out)), cell(bits(n.in)));
    row.addEventListener("click", () => select(n.name));
    return row;
  }));
  for (const b of document.querySelectorAll("th button")) {
    if (b.dataset.sort === view.sort) b.setAttribute("aria-sort", "descending");
    else b.removeAttribute("aria-sort");
  }
}

function drawDrops(s) {
  const rows = (s.traffic?.drops || []).filter(d => d.packets > 0).sort((a, b) => b.packets - a.packets);
  show(byID("drops-table"), rows.length);
  show(byID("no-drops"), !rows.length);
  byID("no-drops").textContent = s.traffic ? "None since the daemon started." :
    "The kernel moves the packets of this backend; the daemon drops none.";
  byID("drops").replaceChildren(...rows.map(d => {
    const r = view.dropRates.get(d.reason);
    return element("tr", {}, element("td", { class: "reason" }, element("b", {}, d.reason), element("span", {}, d.meaning || "")), element("td", { class: "number" }, count(d.packets)),
      element("td", { class: "number" }, r === undefined ? "–" : r.toFixed(1)));
  }));
}

// line draws series over time into an SVG element, all to one scale.
function line(svg, series) {
  const top = Math.max(...series.flat().map(v => v || 0)) || 1;
  svg.replaceChildren(...series.map((values, i) => {
    const p = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    const step = 300 / Math.max(values.length - 1, 1);
    p.setAttribute("points", values.map((v, x) => `${(x * step).toFixed(1)},${(45 - 42 * (v || 0) / top).toFixed(1)}`).join(" "));
    if (i) p.setAttribute("class", "second");
    return p;
  }));
}

function drawDetail() {
  const n = view.nodes.find(n => n.name === view.selected);
  show(byID("detail"), Boolean(n));
  drawOwnRow();
  if (!n) return;
  byID("detail-name").textContent = n.name;
  show(byID("detail-reason"), Boolean(n.node.unreachable));
  byID("detail-reason").textContent = n.node.unreachable || "";
  const fields = [["Subnet", [n.node.subnet, n.node.subnet6].filter(x => x).join(" ")], ["Address", n.node.public]];
  for (const p of n.paths) {
    fields.push(["Probed address", p.address], ["Last answer", age(p.answered)],
      ["Lost echoes", `${p.lost} of ${p.sent}`],
      ["RTT, median", `${duration(p.rtt_seconds)}, ${duration(p.rtt_median_seconds)}`],
      ["Path MTU", p.mtu ? `${p.mtu} bytes` : "not known yet"]);
  }
  if (n.node.heard || n.node.sent) fields.push(["Last packet in", age(n.node.heard)], ["Last packet out", age(n.node.sent)]);
  if (n.node.unanswered) fields.push(["Packets out since the last one in", count(n.node.unanswered)]);
  if (n.node.error) fields.push(["Last error", `${n.node.error}, ${age(n.node.error_at)}`]);
  const t = view.status.traffic?.nodes?.find(t => t.node === n.node.name);
  if (t) {
    fields.push(["Packets out", count(t.out.packets)], ["Packets in", count(t.in.packets)]);
  }
  byID("detail-fields").replaceChildren(...fields.filter(f => f[1]).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  const h = view.history.get(n.name) || [];
  byID("rtt-now").textContent = duration(n.lastRTT);
  byID("rate-now").replaceChildren(element("span", { class: "key" }, `in ${bits(n.in)}`), " ",
    element("span", { class: "key second" }, `out ${bits(n.out)}`));
  line(byID("rtt-line"), [h.map(x => x.rtt)]);
  line(byID("rate-line"), [h.map(x => x.in), h.map(x => x.out)]);
}

function draw() {
  const s = view.status;
  if (!s) return;
  drawHeader(s);
  drawFigures(s);
  drawMatrix();
  drawDetail();
  drawTable();
  drawDrops(s);
}

function select(name) {
  view.selected = name === view.selected ? "" : name;
  history.replaceState(null, "", `#${encodeURIComponent(view.selected)}`);
  draw();
  if (view.selected) byID("detail").scrollIntoView({ block: "nearest" });
}

async function poll() {
  const outage = byID("outage");
  try {
    const answer = await fetch("v1/status", { cache: "no-store" });
    if (!answer.ok) throw new Error(`HTTP status ${answer.status}`);
    accept(await answer.json(), performance.now());
    show(outage, false);
    draw();
  } catch (e) {
    show(outage, true);
    outage.textContent = `The daemon does not answer (${e.message}); the figures below are old.`;
  }
  setTimeout(poll, pollInterval);
}

byID("detail-close").addEventListener("click", () => select(view.selected));
byID("filter").addEventListener("input", () => view.status && drawTable());
for (const b of document.querySelectorAll("th button")) {
  b.addEventListener("click", () => { view.sort = b.dataset.sort; if (view.status) drawTable(); });
}
poll();
