// The page: connects buttons, panels and keys with the pictures.

import { begin, call } from './api.js';
import { Picture, exportPictures, newObject } from './picture.js';
import { Tools } from './tools.js';
import { COLORS, View, drawCover, drawThumbnail } from './view.js';

const $ = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];

const state = { info: null, pictures: [], current: null, letters: true };
const view = new View($('canvas'));
const page = { hint, say, zoomed: showZoom };
const tools = new Tools(view, page);
const listener = {
  changed(picture, what) {
    if (what === 'result') announce(picture);
    if (picture === state.current) update();
    if (what === 'result') drawStrip();
  },
  failed(picture, error) { fail(error); },
};

// --- messages ---

let hintTimer, sayTimer;

function hint(text) {
  clearTimeout(hintTimer);
  $('hint').textContent = text;
  hintTimer = setTimeout(() => { $('hint').textContent = ''; }, 4500);
}

/** Tell users of a screen reader; after `delay` milliseconds, and not if something newer is to be told then. */
function say(text, delay = 0) {
  clearTimeout(sayTimer);
  sayTimer = setTimeout(() => { $('status').textContent = text; }, delay);
}

function toast(text, problem = false) {
  const box = document.createElement('div');
  box.className = problem ? 'toast problem' : 'toast';
  const paragraph = document.createElement('p');
  paragraph.textContent = text;
  const close = button('icon-button', 'Close message', 'i-close');
  close.addEventListener('click', () => box.remove());
  box.append(paragraph, close);
  $('toasts').append(box);
  while ($('toasts').children.length > 3) $('toasts').firstChild.remove();
  setTimeout(() => box.remove(), problem ? 15000 : 5000);
}

function fail(error) {
  if (error.name === 'AbortError') return;
  if (error.status === undefined) console.error(error);
  toast(error.message, true);
}

function announce(picture) {
  const scores = picture.objects.map((o) => picture.shown.get(o.id)?.score).filter((score) => score != null);
  const text = picture.objects.length === 1 ? 'The object is cut out.' : `${picture.objects.length} objects.`;
  say(scores.length ? `${text} Confidence ${percent(scores.at(-1))}.` : text);
}

const percent = (score) => `${Math.round(score * 100)}%`;

function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('aria-hidden', 'true');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  use.setAttribute('href', `#${name}`);
  svg.append(use);
  return svg;
}

function button(className, label, iconName) {
  const element = document.createElement('button');
  element.type = 'button';
  element.className = className;
  element.setAttribute('aria-label', label);
  element.title = label;
  element.append(icon(iconName));
  return element;
}

// --- opening pictures ---

let opening = Promise.resolve();

/** Open photographs one after the other; the last one is shown. */
function openFiles(files) {
  const pictures = [...files].filter((file) => file.size > 0);
  if (pictures.length === 0) return opening;
  opening = opening.then(async () => { for (const file of pictures) await open(file); });
  return opening;
}

async function open(file) {
  const limit = state.info?.max_mb;
  if (limit && file.size > limit * 1e6) {
    toast(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB; this server takes at most ${limit} MB. Scale it down.`, true);
    return;
  }
  const picture = new Picture(file, listener);
  setBusy(true);
  try {
    await picture.open((part) => { if (part < 1 && file.size > 2e6) hint(`Uploading: ${percent(part)}`); });
  } catch (error) {
    fail(error);
    setBusy(false);
    return;
  }
  state.pictures.push(picture);
  await show(picture);
  say(`${picture.name}, ${picture.width} by ${picture.height} pixels, is open.`);
}

async function show(picture) {
  tools.cancel();
  if (state.current && state.current !== picture) {
    state.current.sleep();
  }
  state.current = picture;
  document.body.classList.toggle('empty', !picture);
  document.title = picture ? `${picture.name} - DIS-SAM` : 'DIS-SAM: cut out objects';
  if (picture) {
    try {
      await picture.wake();
    } catch (error) {
      fail(error);
    }
    if (state.current !== picture) return;
    const longest = Math.max(picture.width, picture.height);
    setBrush(Math.round(longest / 25), Math.round(longest / 3));
  }
  view.show(picture);
  update();
  drawStrip();
  if (picture && picture.objects.length === 0) toolHint();
}

function closePicture(picture) {
  const index = state.pictures.indexOf(picture);
  state.pictures.splice(index, 1);
  const wasCurrent = picture === state.current;
  if (wasCurrent) state.current = null;
  picture.close();
  if (wasCurrent) show(state.pictures[Math.min(index, state.pictures.length - 1)] ?? null);
  else drawStrip();
}

async function openExample(name) {
  try {
    const blob = await (await call(`api/examples/${encodeURIComponent(name)}`)).blob();
    await openFiles([new File([blob], name, { type: blob.type })]);
  } catch (error) {
    fail(error);
  }
}

async function listExamples() {
  const examples = await (await call('api/examples')).json();
  for (const { name, title } of examples) {
    const item = document.createElement('li');
    const element = document.createElement('button');
    element.type = 'button';
    const image = document.createElement('img');
    image.alt = '';
    const label = document.createElement('span');
    label.textContent = title;
    element.append(image, label);
    element.addEventListener('click', () => openExample(name));
    item.append(element);
    $('examples').querySelector('ul').append(item);
    call(`api/examples/${encodeURIComponent(name)}`)
      .then((response) => response.blob())
      .then((blob) => { image.src = URL.createObjectURL(blob); })
      .catch(() => {});
  }
  $('examples').hidden = examples.length === 0;
  $('source').textContent = examples.length ? `The examples are ${examples[0].source}.` : '';
}

// --- what the page shows ---

function setBusy(busy) { $('busy').hidden = !busy; }

function update() {
  const picture = state.current;
  if (!picture) {
    setBusy(false);
    return;
  }
  tools.update();
  view.draw();
  setBusy(picture.busy);
  if (picture.busy) hint('');
  if (view.mode === 'cutout' || view.mode === 'compare') picture.loadColors();
  $('undo').disabled = picture.past.length === 0;
  $('redo').disabled = picture.future.length === 0;
  $('download').disabled = picture.objects.length === 0;
  $('save-pair').disabled = picture.objects.length === 0;
  $('new-object').hidden = picture.objects.length === 0 || picture.active === null;
  $('no-objects').hidden = picture.objects.length > 0;
  $('reset-mask').hidden = !picture.activeObject?.mask;
  $('canvas').setAttribute('aria-label', `${picture.name}, ${picture.width} by ${picture.height} pixels`);
  showZoom();
  showDivider();
  showObjects(picture);
  showBox(picture.activeObject);
}

function showZoom() { $('zoom-level').textContent = `${Math.round(view.scale * view.dpr * 100)}%`; }

function describe(picture, object) {
  const shown = picture.shown.get(object.id);
  const kind = object.mask ? 'Painted mask'
    : object.whole ? 'Main object'
    : [object.box && 'Box', object.points.length && `${object.points.length} point${object.points.length > 1 ? 's' : ''}`].filter(Boolean).join(', ');
  if (picture.working.has(object.id)) return 'Working...';
  if (picture.hasFailed(object)) return `${kind}: failed`;
  return shown?.score != null ? `${kind}, ${percent(shown.score)} sure` : kind;
}

function showObjects(picture) {
  const list = $('objects');
  while (list.children.length > picture.objects.length) list.lastChild.remove();
  picture.objects.forEach((object, index) => {
    const item = list.children[index] ?? list.appendChild(objectItem());
    item.dataset.id = object.id;
    item.classList.toggle('active', object.id === picture.active);
    item.querySelector('.select').setAttribute('aria-pressed', String(object.id === picture.active));
    item.querySelector('.name').textContent = `Object ${index + 1}`;
    item.querySelector('small').textContent = describe(picture, object);
    item.querySelector('.icon-button').setAttribute('aria-label', `Remove object ${index + 1}`);
    const canvas = item.querySelector('canvas');
    canvas.style.borderColor = COLORS[index % COLORS.length];
    if (picture.photo) drawThumbnail(canvas, picture, object);
  });
}

function objectItem() {
  const item = document.createElement('li');
  const select = document.createElement('button');
  select.type = 'button';
  select.className = 'select';
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 80;
  const text = document.createElement('span');
  text.className = 'text';
  const name = document.createElement('span');
  name.className = 'name';
  text.append(name, document.createElement('small'));
  select.append(canvas, text);
  select.addEventListener('click', () => state.current.select(item.dataset.id));
  const remove = button('icon-button', 'Remove', 'i-trash');
  remove.addEventListener('click', () => state.current.remove(item.dataset.id));
  item.append(select, remove);
  return item;
}

const boxInputs = all('#box-fields input');

function showBox(object) {
  const box = object && !object.mask ? object.box : null;
  $('box-fields').hidden = !box;
  boxInputs.forEach((input, index) => {
    input.max = (index % 2 ? state.current.height : state.current.width) - 1;
    if (box && document.activeElement !== input) input.value = box[index];
  });
}

function changeBox() {
  const object = state.current.activeObject;
  const box = boxInputs.map((input) => Math.round(Number(input.value)));
  const { width, height } = state.current;
  const fits = box.every(Number.isFinite) && box[0] >= 0 && box[1] >= 0 && box[2] < width && box[3] < height;
  if (!object?.box || box.every((value, index) => value === object.box[index])) return;
  if (fits && box[0] <= box[2] && box[1] <= box[3] && (box[0] < box[2] || box[1] < box[3])) {
    state.current.replace({ ...object, box });
  } else {
    toast(`A box needs left below right and top below bottom, within ${width} by ${height} pixels.`, true);
    boxInputs.forEach((input, index) => { input.value = object.box[index]; });
  }
}

function drawStrip() {
  const list = $('strip');
  list.replaceChildren();
  for (const picture of state.pictures) {
    const item = document.createElement('li');
    const thumb = document.createElement('button');
    thumb.type = 'button';
    thumb.className = 'thumb';
    thumb.setAttribute('aria-label', `Show ${picture.name}`);
    thumb.title = picture.name;
    if (picture === state.current) thumb.setAttribute('aria-current', 'true');
    if (!picture.thumbnail) {
      picture.thumbnail = document.createElement('canvas');
      picture.thumbnail.width = 168;
      picture.thumbnail.height = 112;
    }
    if (picture.photo) drawThumbnail(picture.thumbnail, picture);
    thumb.append(picture.thumbnail);
    thumb.addEventListener('click', () => { if (picture !== state.current) show(picture); });
    const remove = button('remove', `Close ${picture.name}`, 'i-close');
    remove.addEventListener('click', () => closePicture(picture));
    item.append(thumb, remove);
    list.append(item);
  }
  const item = document.createElement('li');
  const add = button('add', 'Open another picture', 'i-zoom-in');
  add.addEventListener('click', () => $('file').click());
  item.append(add);
  list.append(item);
}

// --- before and after ---

function showDivider() {
  const divider = $('divider');
  divider.hidden = view.mode !== 'compare' || !state.current || state.current.objects.length === 0 || view.mask !== null;
  divider.style.left = `${view.split * 100}%`;
  divider.setAttribute('aria-valuenow', String(Math.round(view.split * 100)));
}

function setSplit(split) {
  view.split = Math.min(Math.max(split, 0), 1);
  view.draw();
  showDivider();
}

$('divider').addEventListener('pointerdown', (event) => event.currentTarget.setPointerCapture(event.pointerId));
$('divider').addEventListener('pointermove', (event) => {
  if (!event.currentTarget.hasPointerCapture(event.pointerId)) return;
  const { left, width } = view.canvas.getBoundingClientRect();
  setSplit((event.clientX - left) / width);
});
$('divider').addEventListener('keydown', (event) => {
  const to = { ArrowLeft: view.split - 0.02, ArrowDown: view.split - 0.02, ArrowRight: view.split + 0.02, ArrowUp: view.split + 0.02, Home: 0, End: 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  setSplit(to);
});

// --- controls ---

function toolHint() {
  const text = {
    box: 'Drag a box around an object',
    include: 'Click on the object',
    exclude: 'Click on what does not belong to the object',
    paint: 'Paint over what belongs to the object',
    erase: 'Erase what does not belong to the object',
    move: 'Drag to move the picture',
  }[tools.tool];
  hint(text);
}

function setTool(tool) {
  const input = document.querySelector(`#tools input[value=${tool}]`);
  if (input.closest('label').classList.contains('needs-points') && !state.info?.points) return;
  input.checked = true;
  tools.setTool(tool);
  showDivider();
  toolHint();
}

function setView(mode) {
  document.querySelector(`#views input[value=${mode}]`).checked = true;
  view.mode = mode;
  if (tools.brushing && mode !== 'highlight') setTool('box');
  update();
}

function setBrush(size, largest = Number($('brush').max)) {
  $('brush').max = String(Math.max(largest, 2));
  $('brush').value = String(size);
  $('brush-value').textContent = `${$('brush').value} px`;
  tools.setDiameter(Number($('brush').value));
}

function setBackground(kind) {
  document.querySelector(`#backgrounds input[value=${kind}]`).checked = true;
  view.background.kind = kind;
  $('color-row').hidden = kind !== 'color';
  $('picture-row').hidden = kind !== 'picture';
  if (view.mode === 'highlight' || view.mode === 'alpha') setView('cutout');
  view.draw();
}

function travel(step) {
  tools.cancel();
  state.current?.[step]();
}

function clickable(id, action) { $(id).addEventListener('click', action); }

clickable('open', () => $('file').click());
clickable('choose', () => $('file').click());
clickable('undo', () => travel('undo'));
clickable('redo', () => travel('redo'));
clickable('zoom-in', () => { view.zoom(1.5); showZoom(); });
clickable('zoom-out', () => { view.zoom(1 / 1.5); showZoom(); });
clickable('zoom-fit', () => { view.fit(); showZoom(); });
clickable('help', () => $('help-dialog').showModal());
clickable('salient', () => {
  const known = state.current.objects.find((object) => object.whole && !object.mask);
  if (known) state.current.select(known.id);
  else state.current.add(newObject({ whole: true }));
});
clickable('new-object', () => { state.current.select(null); toolHint(); });
clickable('load-mask', () => $('mask-file').click());
clickable('reset-mask', () => {
  const object = state.current.activeObject;
  if (object.box || object.points.length || object.whole) state.current.replace({ ...object, mask: null });
  else state.current.remove(object.id);
});
clickable('choose-background', () => $('background-file').click());
clickable('options', () => togglePanel(!document.body.classList.contains('panel-open')));
clickable('close-panel', () => { togglePanel(false); $('options').focus(); });
clickable('save-pair', savePair);
clickable('download', openDownload);
clickable('download-now', download);

function togglePanel(open) {
  document.body.classList.toggle('panel-open', open);
  $('options').setAttribute('aria-expanded', String(open));
  if (open) $('close-panel').focus();
}

for (const input of all('#tools input')) input.addEventListener('change', () => setTool(input.value));
for (const input of all('#views input')) input.addEventListener('change', () => setView(input.value));
for (const input of all('#backgrounds input')) {
  input.addEventListener('change', () => {
    setBackground(input.value);
    if (input.value === 'picture' && !view.background.bitmap) $('background-file').click();
  });
}
for (const input of boxInputs) input.addEventListener('change', changeBox);
$('brush').addEventListener('input', () => setBrush(Number($('brush').value)));
$('color').addEventListener('input', () => {
  view.background.color = $('color').value;
  $('color-swatch').style.background = $('color').value;
  setBackground('color');
});
$('letters').addEventListener('change', () => { state.letters = $('letters').checked; });

function onFiles(id, action) {
  $(id).addEventListener('change', async () => {
    const files = [...$(id).files];
    $(id).value = '';  // so that the same file can be chosen again
    if (files.length) await action(files);
  });
}

onFiles('file', openFiles);
onFiles('mask-file', async ([file]) => {
  const picture = state.current;
  try {
    const bitmap = await createImageBitmap(file);
    if (Math.abs(bitmap.width / bitmap.height / (picture.width / picture.height) - 1) > 0.01) {
      toast(`The mask is ${bitmap.width} by ${bitmap.height} pixels, but the picture is ${picture.width} by ${picture.height}. Both need the same shape.`, true);
      return;
    }
    const mask = picture.maskCanvas();
    mask.load(bitmap);
    bitmap.close();
    picture.commitMask(picture.activeObject ?? newObject(), mask);
  } catch {
    toast(`${file.name} cannot be read as a picture.`, true);
  }
});
onFiles('background-file', async ([file]) => {
  try {
    view.background.bitmap = await createImageBitmap(file);
    setBackground('picture');
  } catch {
    toast(`${file.name} cannot be read as a picture.`, true);
  }
});

view.onresize = () => { showZoom(); showDivider(); };

// --- drop and paste ---

let dragged = 0;
const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes('Files');
const setDragging = (count) => { dragged = Math.max(count, 0); document.body.classList.toggle('dragging', dragged > 0); };
addEventListener('dragenter', (event) => { if (hasFiles(event)) setDragging(dragged + 1); });
addEventListener('dragleave', (event) => { if (hasFiles(event)) setDragging(dragged - 1); });
addEventListener('dragover', (event) => { if (hasFiles(event)) event.preventDefault(); });
addEventListener('drop', (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  setDragging(0);
  openFiles(event.dataTransfer.files);
});
addEventListener('paste', (event) => {
  if (event.clipboardData?.files.length) openFiles(event.clipboardData.files);
});

// --- keys ---

const letterKeys = {
  b: () => setTool('box'), i: () => setTool('include'), x: () => setTool('exclude'), p: () => setTool('paint'),
  e: () => setTool('erase'), h: () => setTool('move'), v: nextView, n: () => { state.current.select(null); toolHint(); },
  d: () => { if (!$('download').disabled) openDownload(); }, o: () => $('file').click(),
  '[': () => setBrush(Math.floor(tools.diameter / 1.2)), ']': () => setBrush(Math.ceil(tools.diameter * 1.2)),
  '+': () => $('zoom-in').click(), '=': () => $('zoom-in').click(), '-': () => $('zoom-out').click(),
  0: () => $('zoom-fit').click(), 1: () => { view.zoom(1 / (view.scale * view.dpr)); showZoom(); },
  '?': () => $('help-dialog').showModal(),
};

function nextView() {
  const modes = ['highlight', 'cutout', 'compare', 'alpha'];
  setView(modes[(modes.indexOf(view.mode) + 1) % modes.length]);
}

const inText = (target) => target.matches?.('input:not([type=radio], [type=checkbox], [type=range], [type=color])');
// what was clicked with the mouse has the focus too, but the next space is meant for the picture
let byMouse = false;
addEventListener('pointerdown', () => { byMouse = true; }, true);
addEventListener('keydown', (event) => { if (event.key === 'Tab') byMouse = false; }, true);
const takesSpace = (target) => !byMouse && target.matches?.('button, input, a, [role=slider]');

addEventListener('keydown', (event) => {
  if (document.querySelector('dialog[open]') || inText(event.target)) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if ((event.ctrlKey || event.metaKey) && (key === 'z' || key === 'y')) {
    event.preventDefault();
    travel(key === 'y' || event.shiftKey ? 'redo' : 'undo');
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (key === ' ' && state.current && !takesSpace(event.target)) {
    event.preventDefault();
    tools.setSpace(true);
  } else if (key === 'Delete' || key === 'Backspace') {
    if (state.current?.active) state.current.remove(state.current.active);
  } else if (key === 'Escape' && document.body.classList.contains('panel-open')) {
    togglePanel(false);
  } else if (state.letters && letterKeys[key] && (state.current || key === 'o' || key === '?')) {
    event.preventDefault();
    letterKeys[key]();
  }
});
addEventListener('keyup', (event) => {
  if (event.key !== ' ' || !tools.space) return;
  event.preventDefault();
  tools.setSpace(false);
});
addEventListener('blur', () => tools.setSpace(false));

// --- results ---

const chosen = () => document.querySelector('input[name=as]:checked').value;

function openDownload() {
  const { kind, color, bitmap } = view.background;
  const shown = kind === 'color' || (kind === 'picture' && bitmap);
  const input = document.querySelector('input[name=as][value=background]');
  input.disabled = !shown;
  if (!shown && input.checked) document.querySelector('input[name=as][value=rgba]').checked = true;
  $('background-note').textContent = !shown ? 'Choose a color or a picture as background first'
    : kind === 'color' ? `On the color ${color}` : 'On the chosen picture';
  $('all-row').hidden = state.pictures.filter((picture) => picture.objects.length).length < 2;
  if ($('all-row').hidden) $('all').checked = false;
  showSettings();
  $('download-dialog').showModal();
}

function showSettings() {
  const onPicture = chosen() === 'background' && view.background.kind === 'picture';
  for (const id of ['bits', 'all']) {
    $(id).disabled = onPicture;
    if (onPicture) $(id).checked = false;
  }
}
for (const input of all('input[name=as]')) input.addEventListener('change', showSettings);

async function download() {
  const kind = chosen();
  const options = {
    as: kind === 'background' ? (view.background.kind === 'color' ? view.background.color : 'rgba') : kind,
    bits: $('bits').checked ? 16 : 8,
    crop: $('crop').checked,
    threshold: $('hard').checked ? 0.5 : null,
  };
  const pictures = $('all').checked ? state.pictures.filter((picture) => picture.objects.length) : [state.current];
  $('download-now').disabled = true;
  $('download-now').textContent = 'Preparing...';
  try {
    let { blob, name } = await exportPictures(pictures, options);
    if (kind === 'background' && view.background.kind === 'picture') {
      blob = await onBackground(blob, view.background.bitmap);
      name = name.replace('.cutout.', '.composite.');
    }
    saveAs(blob, name);
    $('download-dialog').close();
  } catch (error) {
    $('download-dialog').close();
    fail(error);
  } finally {
    $('download-now').disabled = false;
    $('download-now').textContent = 'Download';
  }
}

async function onBackground(cutout, background) {
  const bitmap = await createImageBitmap(cutout);
  const canvas = document.createElement('canvas');
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  const context = canvas.getContext('2d');
  drawCover(context, background, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error('This browser cannot make a picture of this size.'))), 'image/png');
  });
}

function saveAs(blob, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

async function savePair() {
  $('save-pair').disabled = true;
  try {
    const { name } = await state.current.save();
    toast(`Saved as ${name}.`);
  } catch (error) {
    fail(error);
  } finally {
    $('save-pair').disabled = false;
  }
}

// --- start ---

function askForToken(wrong) {
  const dialog = $('token-dialog');
  $('token-error').hidden = !wrong;
  $('token').value = '';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve($('token').value.trim()), { once: true });
  });
}
$('token-dialog').addEventListener('cancel', (event) => event.preventDefault());

addEventListener('pagehide', (event) => {
  if (!event.persisted) for (const picture of state.pictures) picture.forget();
});

begin(askForToken);
try {
  state.info = await (await call('api/info')).json();
  document.body.classList.toggle('points', state.info.points);
  $('save-section').hidden = !state.info.save;
  $('about').textContent = `DIS-SAM ${state.info.version}, ${state.info.points ? `with SAM ${state.info.sam}` : 'without SAM'}.`;
  await listExamples();
} catch (error) {
  fail(error);
}
