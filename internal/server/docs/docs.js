"use strict";
// Renders /openapi.json. All text goes through textContent: nothing in the
// description can become markup.
const el = (tag, text, cls) => {
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  if (cls) e.className = cls;
  return e;
};
const refName = (ref) => ref.split("/").pop();
const typeOf = (s) => {
  if (!s) return "";
  if (s.$ref) return refName(s.$ref);
  const t = Array.isArray(s.type) ? s.type.join(" | ") : s.type;
  if (s.items) return "[" + typeOf(s.items) + "]";
  if (s.additionalProperties && typeof s.additionalProperties === "object") return "map of " + typeOf(s.additionalProperties);
  return (t || "any") + (s.format ? " (" + s.format + ")" : "");
};
const notes = (s) => [
  s.description, s.enum && "one of: " + s.enum.join(", "), s.default !== undefined && "default " + JSON.stringify(s.default),
  s.minimum !== undefined && "at least " + s.minimum, s.maximum !== undefined && "at most " + s.maximum,
  s.maxLength !== undefined && "at most " + s.maxLength + " characters",
].filter(Boolean).join("; ");
const table = (heads, rows) => {
  const t = el("table"), tr = el("tr");
  heads.forEach((h) => tr.append(el("th", h)));
  t.append(tr);
  rows.forEach((r) => {
    const row = el("tr");
    r.forEach((c, i) => { const td = el("td"); td.append(i === 0 ? el("code", c) : c || ""); row.append(td); });
    t.append(row);
  });
  const wide = el("div", undefined, "wide"); // a table scrolls by itself on a small screen
  wide.append(t);
  return wide;
};
const schemaBlock = (doc, s, open) => {
  const target = s.$ref ? doc.components.schemas[refName(s.$ref)] : s;
  const d = el("details");
  d.open = Boolean(open);
  d.append(el("summary", typeOf(s)));
  const fields = Object.entries((target && target.properties) || {});
  if (!fields.length) return el("p", typeOf(s));
  const needed = new Set(target.required || []);
  d.append(table(["Field", "Type", "Meaning"], fields.map(([k, v]) => [k, typeOf(v) + (needed.has(k) ? "" : ", optional"), notes(v)])));
  const seen = new Set();
  fields.forEach(([, v]) => {
    const inner = v.$ref || (v.items && v.items.$ref);
    if (inner && !seen.has(inner) && inner !== s.$ref) { seen.add(inner); d.append(schemaBlock(doc, { $ref: inner }, false)); }
  });
  return d;
};
const operation = (doc, path, method, op) => {
  const s = el("section");
  s.id = op.operationId;
  const h = el("h3");
  h.append(el("span", method.toUpperCase(), "verb"), el("code", path));
  s.append(h, el("p", op.summary));
  if (op.description) s.append(el("p", op.description));
  if (op.parameters && op.parameters.length) {
    s.append(el("h4", "Parameters"), table(["Name", "In", "Type", "Meaning"], op.parameters.map((p) =>
      [p.name, p.in + (p.required ? ", required" : ""), typeOf(p.schema), [p.description, notes({ ...p.schema, description: "" })].filter(Boolean).join("; ")])));
  }
  for (const [type, media] of Object.entries((op.requestBody && op.requestBody.content) || {})) {
    s.append(el("h4", "Body, " + type), schemaBlock(doc, media.schema || {}, true));
  }
  s.append(el("h4", "Answers"));
  const same = new Map(); // answers of the same kind stand together
  for (const [code, answer] of Object.entries(op.responses || {})) {
    const media = Object.entries(answer.content || {})[0];
    const key = media ? JSON.stringify(media) : "";
    if (!same.has(key)) same.set(key, { media, codes: [] });
    same.get(key).codes.push([code, answer.description || ""]);
  }
  for (const { media, codes } of same.values()) {
    const p = el("p");
    codes.forEach(([code, text], i) => p.append(i ? ", " : "", el("code", code), " " + text));
    s.append(p);
    if (media && media[1].schema) s.append(schemaBlock(doc, media[1].schema, false));
    else if (media) s.append(el("p", media[0]));
  }
  return s;
};
const render = (doc) => {
  document.getElementById("about").textContent = doc.info.description + " Version " + doc.info.version + ".";
  const groups = new Map();
  for (const [path, item] of Object.entries(doc.paths)) {
    for (const [method, op] of Object.entries(item)) {
      const tag = (op.tags || ["other"])[0];
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push([path, method, op]);
    }
  }
  const nav = document.getElementById("nav"), main = document.getElementById("main"), all = [], heads = [];
  for (const [tag, ops] of groups) {
    const inNav = el("h2", tag), inMain = el("h2", tag), own = [];
    nav.append(inNav);
    main.append(inMain);
    heads.push([inNav, inMain, own]);
    for (const [path, method, op] of ops) {
      const a = el("a", op.summary);
      a.href = "#" + op.operationId;
      const s = operation(doc, path, method, op);
      nav.append(a);
      main.append(s);
      own.push(s);
      all.push([(method + " " + path + " " + op.summary + " " + op.operationId).toLowerCase(), a, s]);
    }
  }
  document.getElementById("find").addEventListener("input", (e) => {
    const words = e.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    all.forEach(([text, a, s]) => {
      const hide = !words.every((w) => text.includes(w));
      a.classList.toggle("hidden", hide);
      s.classList.toggle("hidden", hide);
    });
    heads.forEach(([inNav, inMain, own]) => {
      const hide = own.every((s) => s.classList.contains("hidden"));
      inNav.classList.toggle("hidden", hide);
      inMain.classList.toggle("hidden", hide);
    });
  });
  if (location.hash) { const t = document.getElementById(location.hash.slice(1)); if (t) t.scrollIntoView(); }
};
fetch("/openapi.json").then((r) => { if (!r.ok) throw new Error("status " + r.status); return r.json(); }).then(render)
  .catch((e) => { document.getElementById("about").textContent = "The description can't be loaded: " + e.message; });
