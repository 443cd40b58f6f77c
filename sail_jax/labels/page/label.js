'use strict';
const at = (id) => document.getElementById(id);
const sides = [...document.querySelectorAll('.side')].map((side) => ({
  canvas: side.querySelector('canvas'), text: side.querySelector('.text'), end: side.querySelector('.end'),
}));
const buttons = ['left', 'equal', 'skip', 'right'];
const KEYS = { ArrowLeft: 'left', ArrowRight: 'right', e: 'equal', E: 'equal', ' ': 'skip' };
const POLL_MS = 2000, RETRY_MS = 1000;

// A tab is who a question is lent to, and takes its answers back; a name is who answered.
const client = sessionStorage.client ||= [...crypto.getRandomValues(new Uint8Array(16))]
  .map((byte) => byte.toString(16).padStart(2, '0')).join('');
const token = location.hash.slice(1);
const who = at('who');
let me = who.value = localStorage.who || '';
const WHO = 'Who are you? Type your name above, then press Enter: it stands with each answer.';
who.oninput = () => { who.classList.remove('missing'); trouble(''); };
// By Enter, or by leaving the field: what is typed until then is no name. Nothing moves here, or a
// button would from under the pointer that leaves the field for it.
who.onchange = () => {
  me = localStorage.who = who.value.trim();
  if (!question && about) { if (me) act('next', {}); else askWho(); }
};
function named() {
  if (!me) { who.classList.add('missing'); who.focus(); trouble(WHO); }
  return Boolean(me);
}
function askWho() {
  at('nothing').hidden = false;
  at('nothing').textContent = WHO.replace(': ', ':\n');
  who.focus();
  ready();
}

// Responses stand one above the other where there is no room beside each other.
const narrow = matchMedia('(max-width: 700px)');
function nameSides() {
  const stacked = narrow.matches && about.kind === 'responses';
  at('left').textContent = stacked ? '\u2191 Upper' : '\u2190 Left';
  at('right').textContent = stacked ? 'Lower \u2193' : 'Right \u2192';
}

const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const trouble = (text) => { at('trouble').textContent = text; };

// A call that got no reply is made again: the server counts it once.
async function call(name, body) {
  const headers = { 'Content-Type': 'application/json', 'X-Sail-Label': '1' };
  if (token) headers.Authorization = `Bearer ${token}`;
  for (;;) {
    let reply;
    try {
      reply = await fetch(`/api/${name}`, {
        method: 'POST', headers, body: JSON.stringify({ client, ...body }), credentials: 'omit',
      });
      const said = await reply.json();
      if (reply.ok) { trouble(''); return said; }
      if (reply.status < 500 && reply.status !== 429 && reply.status !== 408) {
        throw Object.assign(new Error(said.error), { refused: reply.status });
      }
      trouble(`${said.error} Trying again.`);
    } catch (error) {
      if (error.refused) throw error;
      trouble('No connection: nothing is lost, but the last answer may not be saved yet. Trying again.');
    }
    await wait(RETRY_MS);
  }
}

let about, scenes, question = null, frames = [], yours = 0, busy = true, clock = 0, last = null, timer = null;
let longest = 0, chosen = false;  // Env steps of the longest piece so far; whether the speed was chosen.
at('speed').onchange = () => { chosen = true; };

function show(said) {
  const { asked, answered, waiting, repeated, agreed } = said.progress;
  yours = said.progress.yours;
  const mine = new Map(said.progress.people).get(me) || 0;
  at('progress').textContent = `${answered} of ${asked} answered, ${waiting} waiting, ${mine} by you`
    + (repeated ? `, ${agreed} of ${repeated} repeated the same` : '');
  at('people').replaceChildren(...said.progress.people.map(([name, count]) => {
    const one = document.createElement('bdi');
    one.textContent = `${name}: ${count}`;
    return one;
  }));
  question = said.question;
  at('pair').hidden = !question;
  at('nothing').hidden = Boolean(question);
  at('prompt').hidden = !question || question.prompt === undefined;
  if (question) {
    document.body.dataset.question = question.number;
    if (about.kind === 'segments') {
      frames = question.sides.map((side) => floats(side.poses));
      setSpeed();
    } else {
      at('prompt').textContent = question.prompt;
      sides.forEach((side, i) => { side.text.textContent = question.sides[i]; side.text.scrollTop = 0; });
    }
    clock = 0;
  } else {
    delete document.body.dataset.question;
    at('nothing').textContent = whyNothing(said);
  }
  ready();
}
function whyNothing({ progress: { asked, waiting }, last, stopped }) {
  if (waiting) return 'Others are at the questions that are left.\nOne that is not answered in ten minutes comes to you.';
  const now = last ? 'That was the last question: thank you.' : asked ? 'Every question is answered.' : 'No questions yet.';
  if (stopped) return `${now}\nTraining is not under way. Unless the run is at its end,\n${stopped}`;
  return `${now}\n${last ? 'Training goes on to its end by itself.' : asked ? 'More come as training goes on.' : 'Training will ask.'}`;
}
// The fastest, up to real time, at which the longest piece so far lasts a second.
function setSpeed() {
  longest = Math.max(longest, ...question.sides.map((side) => side.steps));
  if (chosen) return;
  const speeds = [...at('speed').options].map((one) => one.value);
  const slow = speeds.filter((speed) => speed <= 1 && speed <= longest * about.world.dt);
  at('speed').value = slow.at(-1) || speeds[0];
}
function ready() {
  busy = false;
  for (const name of buttons) at(name).disabled = !question;
  at('undo').disabled = !yours;
  clearTimeout(timer);
  if (!question && me) timer = setTimeout(() => act('next', {}), POLL_MS);
}
async function act(name, body) {
  if (busy) return;
  busy = true;
  for (const id of [...buttons, 'undo']) at(id).disabled = true;
  try {
    show(await call(name, { who: me, ...body }));
  } catch (error) {  // Refused: somebody else was faster, or training has learned of it.
    const why = error.message;
    if (error.refused === 400) {  // A name, say.
      if (question) ready(); else { me = ''; askWho(); }
      trouble(why);
      return;
    }
    if (error.refused !== 409) { trouble(why); return; }
    try { show(await call('next', { who: me })); } catch (again) { trouble(again.message); return; }
    trouble(why);
  }
}
function answer(choice) {
  if (!busy && question && named()) act('answer', { ticket: question.ticket, choice });
}
function undo() {
  if (busy) return;
  if (!yours) trouble('Nothing to take back: in this tab nothing was answered yet.');
  else if (named()) act('undo', { yours });
}

for (const name of buttons) at(name).onclick = () => answer(name);
at('undo').onclick = undo;
at('replay').onclick = () => { clock = 0; };
document.onkeydown = (event) => {
  if (event.target === who) {
    if (event.key === 'Enter' && !event.isComposing) {
      trouble(who.value.trim() ? '' : WHO);
      if (who.value.trim()) who.blur();
    }
    else if (event.key.startsWith('Arrow')) trouble(who.value ? 'Press Enter first: in the name the arrows move the cursor.' : WHO);
    return;
  }
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  if (event.key === ' ' && ['BUTTON', 'SELECT'].includes(event.target.tagName)) event.target.blur();
  if (KEYS[event.key]) answer(KEYS[event.key]);
  else if (event.key === 'u' || event.key === 'U') undo();
  else if (event.key === 'r' || event.key === 'R') clock = 0;
  else return;
  event.preventDefault();
};
document.onkeyup = (event) => { if (event.key === ' ' && event.target !== who) event.preventDefault(); };

function tick(now) {
  if (question && scenes) {
    const dt = about.world.dt, steps = Math.max(...question.sides.map((side) => side.steps));
    if (last !== null) clock += (now - last) / 1000 / dt * at('speed').value;
    if (clock >= steps + 0.7 / dt * at('speed').value) clock = 0;  // The last state stands for a moment.
    scenes.forEach((scene, i) => {
      const end = question.sides[i].steps, frame = Math.min(end, Math.floor(clock));
      scene.follow(frames[i], frame, frame ? 0.12 : 1);
      scene.draw(frames[i], frame);
      sides[i].end.style.visibility = clock >= end && end < steps ? 'visible' : 'hidden';
    });
  }
  last = now;
  requestAnimationFrame(tick);
}
async function begin() {
  try {
    about = await call('about', {});
    const moving = about.kind === 'segments';
    at('pair').classList.toggle('still', !moving);
    at('film').hidden = !moving;
    for (const side of sides) { side.canvas.hidden = !moving; side.text.hidden = moving; }
    if (about.instruction) at('instruction').textContent = about.instruction;
    at('task').textContent = about.task;
    nameSides();
    narrow.onchange = nameSides;
    if (moving) {
      // Nearer where a side is narrow.
      const far = about.world.view[0] * (innerWidth < 700 ? 0.6 : 1);
      const camera = makeCamera(far, sides.map((side) => side.canvas));
      scenes = sides.map((side) => makeScene(side.canvas, camera, about.world));
    }
    requestAnimationFrame(tick);
    busy = false;
    if (me) act('next', {}); else askWho();
  } catch (error) { trouble(error.message); }
}
if (!me) who.focus();
begin();
