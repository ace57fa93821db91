// What the page knows, how it stays true, and what is shown of it.

import { ACTIONS } from "./actions.js";
import { Table, show } from "./dom.js";
import { Service } from "./service.js";
import * as theme from "./theme.js";
import { ACTIVE, everyGuest, guestColumns, imageColumns, jobColumns, operationColumns, what } from "./views.js";
import { between } from "./words.js";

const RETRY = 5000; // milliseconds until the service is tried again
const LOOK = 30000; // milliseconds between looks at guests, which change by themselves
const SOON = 300; // milliseconds in which changes are looked at together
const ENDED_SHOWN = 15;
const PAGE = 100; // images
const MOST = 1000;

const world = {
    service: new Service(cockpit.manifests.mapsave.config.socket),
    caller: null,
    problem: null,
    failures: {}, // why a list could not be read, by its name
    health: null,
    guests: [],
    jobs: [],
    broken: [],
    images: [],
    imagesLeft: false,
    imagesShown: PAGE,
    unreachable: [],
    begun: new Set(), // operations that were begun here
    notices: [], // those of them that failed
    operations: new Map(),
    may: kind => world.caller !== null && world.caller.may.includes(kind),
    mayCancel: () => world.may("save"),
};

const place = id => document.getElementById(id);
const tables = {
    guests: new Table(place("guests"), guestColumns(world), each => each.name),
    operations: new Table(place("operations"), operationColumns(world), each => each.id),
    jobs: new Table(place("jobs"), jobColumns(world), each => each.name),
    images: new Table(place("images"), imageColumns(world), each => each.name),
};

// How each list is read, and where it goes.
const LISTS = {
    guests: async () => {
        const found = await world.service.get("/v1/guests", { look: "true" });
        Object.assign(world, { guests: found.guests, unreachable: found.unreachable });
    },
    jobs: async () => {
        const found = await world.service.get("/v1/jobs");
        Object.assign(world, { jobs: found.jobs, broken: found.broken });
    },
    images: async () => {
        const found = await world.service.get("/v1/images", { limit: String(world.imagesShown) });
        Object.assign(world, { images: found.images, imagesLeft: found.next !== null });
    },
    operations: async () => {
        const active = world.service.get("/v1/operations", { active: "true", limit: String(MOST) });
        const last = world.service.get("/v1/operations", { limit: String(2 * ENDED_SHOWN) });
        for (const each of [...(await last).operations, ...(await active).operations])
            note(each);
    },
    health: async () => {
        world.health = await world.service.get("/v1/health");
    },
};

// Note an operation, unless a later state of it is known: answers and events may cross.
function note(operation) {
    const known = world.operations.get(operation.id);
    if (known && (!ACTIVE.includes(known.state) || known.revision > operation.revision)
        && ACTIVE.includes(operation.state))
        return;
    world.operations.set(operation.id, operation);
}

async function read(...names) {
    await Promise.all(names.map(async name => {
        try {
            await LISTS[name]();
            delete world.failures[name];
        } catch (error) {
            if (!error.unreachable)
                world.failures[name] = { message: error.message, hint: error.hint, id: error.id };
        }
    }));
    render();
}

const soon = { names: new Set(), timer: null };

function readSoon(...names) {
    names.forEach(name => soon.names.add(name));
    soon.timer ??= setTimeout(() => {
        const wanted = [...soon.names];
        soon.names.clear();
        soon.timer = null;
        if (world.problem === null)
            read(...wanted);
    }, SOON);
}

function heard(kind, data) {
    if (kind === "service") {
        readSoon(...Object.keys(LISTS));
        return;
    }
    const known = world.operations.get(data.id);
    if (kind === "progress" && known && ACTIVE.includes(known.state))
        known.progress = data.progress;
    if (kind === "operation") {
        note(data);
        if (!ACTIVE.includes(data.state)) {
            ended(data);
        } else if (data.kind === "job") {
            readSoon("jobs");
        }
    }
    renderSoon();
}

function ended(operation) {
    say(`${what(operation)}: ${operation.state}`);
    if (world.begun.delete(operation.id) && operation.state === "failed")
        world.notices.push(operation);
    readSoon("guests", "images", "jobs", "health");
}

const connection = { stop: () => {}, timer: null, number: 0 };

// Connect, and again whenever the connection ends: until then the page says why there is none.
async function connect() {
    const number = connection.number += 1;
    clearTimeout(connection.timer);
    connection.stop();
    const lost = failure => {
        if (number !== connection.number)
            return;
        world.problem = failure;
        world.operations.clear();
        connection.timer = setTimeout(connect, RETRY);
        render();
    };
    try {
        world.caller = await world.service.get("/v1/caller");
    } catch (failure) {
        lost(failure);
        return;
    }
    connection.stop = world.service.listen({
        heard,
        ended: lost,
        begun: async () => {
            world.problem = null;
            await read(...Object.keys(LISTS));
            place("waiting").hidden = true;
        },
    });
}

function say(words) {
    place("said").textContent = words;
}

let frame = null;

function renderSoon() {
    frame ??= requestAnimationFrame(render);
}

function render() {
    frame = null;
    const { caller, problem } = world;
    place("page").hidden = problem !== null;
    if (problem !== null)
        place("waiting").hidden = true;
    show(place("problem"), problem === null ? [] : problemParts(problem));
    show(place("caller"), problem !== null || caller === null ? [] : callerParts(caller));
    if (problem !== null)
        return;
    show(place("notices"), world.notices.map(noticePart));
    show(place("health"), healthParts(world.health));
    show(place("every"), everyGuest(world));
    tables.guests.show(world.guests, [
        ...world.unreachable.map(failure => ({ failure })),
        ...empty("guests", "No guests are configured. Name them in /etc/mapsave/manager.yaml, below 'guests:'."),
    ]);
    tables.operations.show(shownOperations(), empty("operations", "Nothing runs, and nothing has run.",
        world.operations.size));
    tables.jobs.show(world.jobs, [
        ...world.broken.map(each => ({ failure: each.error })),
        ...empty("jobs", "There are no jobs. One is a YAML file in the jobs directory."),
    ]);
    tables.images.show(world.images, [
        ...empty("images", "No guest is saved: there are no images."),
        ...moreImages(),
    ]);
}

function empty(list, words, count = world[list].length) {
    if (list in world.failures)
        return [{ failure: world.failures[list] }];
    return count ? [] : [words];
}

function moreImages() {
    if (!world.imagesLeft)
        return [];
    if (world.imagesShown >= MOST)
        return [`These are the newest ${MOST}; 'mapsave list' shows all.`];
    return [{ act: "more", on: "images", label: "Show more" }];
}

function shownOperations() {
    const all = [...world.operations.values()].sort((one, other) => between(one.created, other.created));
    const active = all.filter(each => ACTIVE.includes(each.state));
    const ended = all.filter(each => !ACTIVE.includes(each.state));
    for (const each of ended.splice(ENDED_SHOWN))
        world.operations.delete(each.id);
    return [...active, ...ended];
}

function noticePart(operation) {
    const error = operation.error ?? { message: "see the outcome of each guest below", hint: null, id: null };
    return {
        failure: { ...error, message: `${what(operation)} failed: ${error.message}` },
        button: { act: "dismiss", on: operation.id, label: "Dismiss" },
    };
}

function problemParts(problem) {
    if (problem.unreachable)
        return [{
            failure: {
                message: "The service is not running.",
                hint: `${problem.message} Start it: systemctl start mapsaved. `
                    + "This page shows the guests as soon as it answers.",
                id: null,
            },
        }];
    const { message, hint, id, denied } = problem;
    if (problem.status === 403)
        return [{ failure: { message: "You have no right to look at saved guests.", hint: `${hint}${orBeRoot()}.`, id } }];
    return [{ failure: { message, hint: denied ? hint + orBeRoot() : hint, id } }];
}

const orBeRoot = () =>
    (administrator.allowed === false ? ", or turn on Cockpit's administrative access, if you may" : "");

function callerParts({ user, role, hint }) {
    const rights = {
        reader: "may look, and change nothing",
        operator: "may save and restore, and discard nothing",
    };
    return [`You are ${user}, ${role}`, ...(role in rights ? [`: you ${rights[role]}. To do more: ${hint}${orBeRoot()}.`] : ["."])];
}

function healthParts(health) {
    if (health === null || health.status !== "degraded")
        return [];
    return [{ failure: { message: "The service is degraded.", hint: health.reasons.join(" "), id: null } }];
}

document.addEventListener("click", event => {
    const { act, on } = event.target.closest("button[data-act]")?.dataset ?? {};
    if (act === "more") {
        world.imagesShown = Math.min(MOST, world.imagesShown + PAGE);
        read("images");
    } else if (act === "dismiss") {
        world.notices = world.notices.filter(each => each.id !== on);
        render();
    } else if (act) {
        ACTIONS[act](world, on);
    }
});

theme.follow();
setInterval(() => {
    if (document.visibilityState === "visible" && world.problem === null && world.caller !== null)
        read("guests", "images", "jobs", "health");
}, LOOK);
// Turning administrative access on or off makes another user of this one.
const administrator = cockpit.permission({ admin: true });
let allowed = administrator.allowed;
administrator.addEventListener("changed", () => {
    if (allowed !== null && allowed !== administrator.allowed)
        connect();
    else
        renderSoon(); // what it says of that is known only now
    allowed = administrator.allowed;
});
connect();
