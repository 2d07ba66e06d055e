// Shows openapi.json as a page. FastAPI's own pages for that load their scripts from another server.

function element(name, text = '', className = '') {
  const made = document.createElement(name);
  made.append(...inline(text));
  if (className) made.className = className;
  return made;
}

/** Turn `code` in a text into elements. */
function inline(text) {
  return text.split('`').map((part, index) => {
    if (index % 2 === 0) return part;
    const code = document.createElement('code');
    code.textContent = part;
    return code;
  });
}

const resolve = (schema, root) => (schema?.$ref ? schema.$ref.slice(2).split('/').reduce((at, key) => at[key], root) : schema);

function typeOf(schema, root) {
  const found = resolve(schema, root) ?? {};
  if (found.anyOf) return found.anyOf.map((part) => typeOf(part, root)).filter((type) => type !== 'null').join(' or ');
  if (found.enum) return found.enum.join(' or ');
  if (found.const) return String(found.const);
  if (found.format === 'binary' || found.contentMediaType) return 'file';
  if (found.type === 'array') return `${typeOf(found.items, root)}, may repeat`;
  return found.type ?? 'object';
}

function fieldsOf(operation, root) {
  const fields = (operation.parameters ?? []).map((p) => ({ name: p.name, schema: p.schema, required: p.required, text: p.description }));
  for (const [kind, { schema }] of Object.entries(operation.requestBody?.content ?? {})) {
    const body = resolve(schema.allOf?.[0] ?? schema, root);
    for (const [name, property] of Object.entries(body.properties ?? {})) {
      fields.push({ name, schema: property, required: body.required?.includes(name), text: property.description, kind });
    }
  }
  return fields;
}

function table(fields, root) {
  const made = element('table');
  const head = made.createTHead().insertRow();
  for (const title of ['Field', 'Type', 'Meaning']) head.append(element('th', title));
  const body = made.createTBody();
  for (const { name, schema, required, text } of fields) {
    const row = body.insertRow();
    const fallback = schema?.default;
    const note = required ? 'Required. ' : fallback != null && fallback !== '' && fallback.length !== 0 ? `Default: \`${fallback}\`. ` : '';
    row.append(element('td', `\`${name}\``), element('td', typeOf(schema, root)), element('td', note + (text ?? '')));
  }
  const box = element('div', '', 'scroll');
  box.append(made);
  return box;
}

function show(root) {
  document.getElementById('about').textContent = `${root.info.description} Version ${root.info.version}.`;
  const titles = { programs: 'For programs', page: 'Used by the page' };
  const sections = {};
  for (const [path, methods] of Object.entries(root.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const article = element('article');
      const title = element('h3');
      title.append(element('span', method.toUpperCase(), 'method'), element('code', path));
      article.append(title, element('p', operation.description ?? operation.summary));
      const fields = fieldsOf(operation, root);
      if (fields.length) article.append(table(fields, root));
      const codes = Object.entries(operation.responses).filter(([code]) => code >= '400' && code !== '422');
      if (codes.length) article.append(element('p', codes.map(([code, { description }]) => `${code}: ${description}`).join(' '), 'muted'));
      const tag = operation.tags?.[0] ?? 'page';
      sections[tag] ??= [];
      sections[tag].push(article);
    }
  }
  for (const [tag, title] of Object.entries(titles)) {
    document.getElementById('operations').append(element('h2', title), ...(sections[tag] ?? []));
  }
}

const base = document.baseURI.replace(/docs$/, '');
document.getElementById('curl').textContent = [
  `curl -F picture=@photo.jpg -F box=120,80,610,540 ${base}api/cut -o cutout.png`,
  `curl -F picture=@photo.jpg -F mask=@mask.png -F as=alpha -F bits=16 ${base}api/refine -o alpha.png`,
].join('\n');
show(await (await fetch('openapi.json')).json());
