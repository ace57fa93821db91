// What the tables show of guests, operations, jobs and images. Parts are what dom.js shows.

import { base, between, duration, moment, size } from "./words.js";

export const ACTIVE = ["pending", "running", "committing"];
const GONE = ["not running", "shut off", "busy"];
const RESTORABLE = ["saved", "restored"];
const KINDS = {
    good: ["running", "saved", "done", "committing"],
    bad: ["failed", "invalid", "lost"],
    busy: ["pending", "partial", "busy", "paused"],
};

const state = word => ({
    state: word,
    kind: Object.keys(KINDS).find(kind => KINDS[kind].includes(word)) ?? "other",
});
// A button that asks first, as its dots say.
export const act = (name, on, label, harm = false) => ({ act: name, on, label: `${label} …`, harm });
const faint = (...line) => ({ line, faint: true });

export function guestColumns(world) {
    return [
        { title: "Guest", parts: guest => [guest.name, faint(guest.address ?? words(guest.kind))] },
        { title: "State", parts: guest => guestState(world, guest) },
        { title: "Last image", parts: guest => lastImage(guest.last_image) },
        { title: "Actions", parts: guest => guestActions(world, guest) },
    ];
}

const words = kind => (kind === "image" ? "known from its image only" : kind);

function operationOn(world, guest) {
    // A restore names no guest that is the image's own.
    const image = guest.last_image?.name;
    return [...world.operations.values()].find(each =>
        ACTIVE.includes(each.state) && ["save", "restore"].includes(each.kind)
        && (each.guest === guest.name || (each.guest === null && base(each.image) === image)));
}

function guestState(world, guest) {
    const active = operationOn(world, guest);
    if (active)
        return [state("busy"), faint(`${active.kind} ${active.id}`)];
    if (guest.error)
        return [{ failure: guest.error }];
    return guest.state === null ? ["unknown"] : [state(guest.state)];
}

function lastImage(image) {
    if (image === null)
        return ["never saved"];
    return [image.name, faint(moment(image.saved), `, ${size(image.allocated_bytes)}, ${image.state}`)];
}

// The buttons that are about all guests.
export function everyGuest(world) {
    const found = [];
    if (world.may("save-all") && world.guests.some(isUp))
        found.push(act("save-all", "all guests", "Save all"));
    if (world.may("restore-all") && world.guests.some(guest => guest.last_image?.state === "saved"))
        found.push(act("restore-all", "all guests", "Restore all"));
    return found;
}

export const isUp = guest => guest.state !== null && !GONE.includes(guest.state);

function guestActions(world, guest) {
    const image = guest.last_image;
    const found = [];
    if (operationOn(world, guest))
        return found;
    if (world.may("save") && isUp(guest))
        found.push(act("save", guest.name, "Save"));
    if (world.may("restore") && image?.state === "saved" && GONE.includes(guest.state ?? "not running"))
        found.push(act("restore", image.name, "Restore"));
    return found;
}

export function operationColumns(world) {
    return [
        {
            title: "Operation",
            parts: each => [what(each), faint({ id: each.id }, ` ${each.user}`), ...partOf(each)],
        },
        { title: "State", parts: operationState },
        { title: "Begun", parts: each => [moment(each.started ?? each.created), ...took(each)] },
        {
            title: "Actions",
            parts: each => (world.mayCancel() && ["pending", "running"].includes(each.state)
                ? [act("cancel", each.id, "Cancel", true)] : []),
        },
    ];
}

export function what(each) {
    const on = each.kind === "job" ? each.job : each.guest ?? base(each.image);
    return on === null ? each.kind : `${each.kind} ${on}`;
}

const partOf = each =>
    (each.parent === null ? [] : [faint("part of ", each.job === null ? { id: each.parent } : `job ${each.job}`)]);

const took = each =>
    (each.ended && each.started ? [faint(duration(between(each.started, each.ended)))] : []);

function operationState(each) {
    const shown = [state(each.state)];
    if (each.state !== "pending" && ACTIVE.includes(each.state))
        shown.push(...progress(each));
    if (each.error && each.state === "cancelled")
        shown.push(faint(each.error.message));
    else if (each.error)
        shown.push({ failure: each.error });
    else if (outcome(each))
        shown.push(faint(outcome(each)));
    shown.push(...(each.result?.warnings ?? []).map(warning => faint(`warning: ${warning}`)));
    return shown;
}

function progress({ progress: now, step }) {
    if (now === null)
        return step === null ? [] : [faint(step)];
    const percent = now.total_bytes ? Math.floor(100 * now.done_bytes / now.total_bytes) : 0;
    const left = now.eta_s === null ? "" : `, ${duration(now.eta_s)} left`;
    return [
        { progress: now.done_bytes, of: now.total_bytes || 1, label: `${now.phase}, ${percent} %` },
        faint(`${now.phase}: ${size(now.done_bytes)} of ${size(now.total_bytes)}, ${percent} %${left}`),
    ];
}

// What came of an operation on several guests, such as "4 saved, 2 FAILED".
function outcome({ result }) {
    const counts = [["saved", "saved"], ["restored", "restored"], ["failed", "FAILED"],
        ["no_time", "WITHOUT TIME"]];
    return counts
        .filter(([key], number) => typeof result?.[key] === "number" && (number < 2 || result[key]))
        .map(([key, word]) => `${result[key]} ${word}`)
        .join(", ");
}

export function jobColumns(world) {
    return [
        { title: "Job", parts: job => [job.name, faint(job.kind === "scrub" ? "verifies images" : job.guests.join(", ") || "no guests")] },
        { title: "Last run", parts: job => lastRun(world, job) },
        { title: "Next run", parts: job => [job.next_run === null ? "not scheduled" : moment(job.next_run)] },
        {
            title: "Actions",
            parts: job => (world.may("job") ? [act("job", job.name, "Run")] : []),
        },
    ];
}

function lastRun(world, { last_run: last }) {
    if (last === null)
        return ["never"];
    const now = world.operations.get(last.id) ?? last;
    const shown = [...operationState(now), faint(moment(now.started ?? now.created))];
    return now.state === "running" ? shown.filter(part => !("progress" in part)) : shown;
}

export function imageColumns(world) {
    return [
        { title: "Image", parts: image => [image.name, ...(image.note ? [faint(image.note)] : [])] },
        { title: "Guest", parts: image => [image.guest ?? "unknown"] },
        { title: "Saved", parts: image => [moment(image.saved), faint(`${size(image.allocated_bytes)} on disk`)] },
        { title: "State", parts: imageState },
        { title: "Actions", parts: image => imageActions(world, image) },
    ];
}

function imageState(image) {
    const shown = [state(image.state)];
    if (image.pinned)
        shown.push(faint("pinned: it is kept"));
    if (image.error)
        shown.push({ failure: image.error });
    return shown;
}

function imageActions(world, image) {
    const found = [{ act: "look", on: image.name, label: "Show" }];
    if (world.may("restore") && RESTORABLE.includes(image.state))
        found.push(act("restore", image.name, "Restore"));
    if (world.may("discard") && !image.pinned)
        found.push(act("discard", image.name, "Discard", true));
    return found;
}
