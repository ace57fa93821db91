// What each button asks before anything is done.

import { ask, look } from "./dialog.js";
import { built, element, failure } from "./dom.js";
import { imagePath, newId } from "./service.js";
import { act, isUp, what } from "./views.js";
import { moment, size } from "./words.js";

// Each takes the world and the name of the thing that the button is about.
export const ACTIONS = {
    save, restore, discard, job, cancel, look: show,
    "save-all": saveAll,
    "restore-all": restoreAll,
    verify: about("verify", "Verify",
        "All that describes the memory in it is read and compared. Guest and image stay as they are."),
    pin: about("pin", "Pin",
        "The image is kept, whatever the jobs keep, and not discarded or replaced, until it is unpinned."),
    unpin: about("unpin", "Unpin",
        "Jobs remove the image once they do not keep it any more, and it can be discarded."),
};

// Begin an operation, and note before that its outcome is of interest here: it may end at once.
async function begin({ service, begun }, request) {
    const id = newId();
    begun.add(id);
    try {
        await service.begin(id, request);
    } catch (error) {
        begun.delete(id);
        throw error;
    }
}

function save(world, guest) {
    ask({
        title: `Save ${guest}?`,
        parts: ["Its memory and devices are written to an image. It stands still while they are."],
        fields: [
            {
                name: "then",
                label: "Afterwards",
                value: "quit",
                options: [
                    ["quit", "shut it down: a restore continues from here"],
                    ["resume", "resume it: the image then fits its disks only as they are now"],
                    ["leave", "leave it paused"],
                ],
            },
            { name: "image", label: "Name of the image", hint: "guest and time" },
            { name: "note", label: "Note" },
        ],
        button: "Save",
        send: chosen => begin(world, { kind: "save", guest, save: chosen }),
    });
}

async function restore(world, name) {
    const { images, guests } = world;
    const image = images.find(each => each.name === name)
        ?? guests.map(each => each.last_image).find(each => each?.name === name);
    const used = image?.state === "restored";
    // Not known of an image that cannot be read: the restore says so itself.
    const { then } = await world.service.get(imagePath(name)).catch(() => ({ then: "quit" }));
    const ran = !used && then !== "quit";
    ask({
        title: `Restore ${name}?`,
        parts: [
            `${image?.guest ?? "Its guest"} is started from this image, and the image is marked as restored.`,
            ...(used ? ["It has been restored before: the guest's disks have changed since, and restoring it "
                + "again damages them unless they are as they were at the save."] : []),
            ...(ran ? ["The guest was not shut down by this save: if it went on, its disks have changed since, and "
                + "restoring it damages them unless they are as they were at the save."] : []),
        ],
        fields: [
            {
                name: "run",
                label: "After the restore the guest is",
                value: "as-saved",
                options: [
                    ["as-saved", "as it was at the save"],
                    ["run", "running"],
                    ["paused", "paused"],
                ],
            },
            ...(used ? [{ name: "again", label: "Its disks are as they were at the save", must: true }] : []),
            ...(ran ? [{ name: "disks", label: "Its disks are as they were at the save", must: true }] : []),
        ],
        button: used ? "Restore it again" : "Restore",
        harm: used || ran,
        send: ({ disks, ...chosen }) => begin(world, { kind: "restore", image: name, restore: chosen }),
    });
}

// All guests of this host, as before a shutdown.
function saveAll(world) {
    const up = world.guests.filter(isUp).map(guest => guest.name);
    ask({
        title: "Save all guests?",
        parts: [
            `These are saved, some at once: ${up.join(", ")}. Each stands still while it is saved.`,
            "Those that are shut down by it are brought back by \"Restore all\".",
        ],
        fields: [
            { name: "then", label: "Afterwards each is", value: "quit", options: [
                ["quit", "shut down"],
                ["resume", "resumed"],
                ["leave", "left paused"],
            ] },
            { name: "deadline", label: "Time for all of them", hint: "no limit; for example 4m" },
        ],
        button: "Save all guests",
        harm: true,
        send: chosen => begin(world, { kind: "save-all", ...chosen }),
    });
}

function restoreAll(world) {
    ask({
        title: "Restore all guests?",
        parts: ["What the last saving of all guests has saved is started from its images. Guests that "
            + "run, and images that were restored since, are left as they are."],
        button: "Restore all guests",
        send: () => begin(world, { kind: "restore-all" }),
    });
}

function discard(world, name) {
    const image = world.images.find(each => each.name === name);
    const only = image?.state === "saved";
    ask({
        title: `Discard ${name}?`,
        parts: [
            `The image is deleted; ${size(image?.exclusive_bytes ?? image?.allocated_bytes ?? 0)} become free.`,
            ...(only ? [`It was never restored: the state of ${image.guest ?? "its guest"} in it is lost.`] : []),
        ],
        fields: only ? [{ name: "unrestored", label: "Delete it although it was never restored", must: true }] : [],
        button: "Discard it for good",
        harm: true,
        send: chosen => begin(world, { kind: "discard", image: name, ...chosen }),
    });
}

// Return what asks, and begins an operation that is about an image and nothing else.
function about(kind, word, words) {
    return (world, name) => ask({
        title: `${word} ${name}?`,
        parts: [words],
        button: word,
        send: () => begin(world, { kind, image: name }),
    });
}

function job(world, name) {
    const known = world.jobs.find(each => each.name === name);
    const guests = known?.guests ?? [];
    ask({
        title: `Run the job ${name} now?`,
        parts: [
            known?.kind === "scrub"
                ? "It verifies the data of images that are due; that may take hours."
                : `It saves ${guests.join(", ") || "no guests"}, and removes images that it does not keep.`,
        ],
        button: "Run it",
        send: () => begin(world, { kind: "job", job: name }),
    });
}

function cancel({ service, operations }, id) {
    const about = what(operations.get(id));
    ask({
        title: `Cancel ${about}?`,
        parts: ["What it has done so far is rolled back: its guest becomes as it was before."],
        button: "Cancel the operation",
        harm: true,
        send: () => service.cancel(id),
    });
}

async function show({ service, may }, name) {
    const waiting = element("p", {}, "Reading the image …");
    const place = look(name, waiting);
    try {
        const [found, svg] = await Promise.all([service.get(imagePath(name)), picture(service, name)]);
        const more = [["verify", "Verify"], found.pinned ? ["unpin", "Unpin"] : ["pin", "Pin"]]
            .filter(([kind]) => may(kind))
            .map(([kind, label]) => built(act(kind, name, label)));
        place.append(facts(found), svg, element("div", { class: "buttons" }, ...more));
    } catch (error) {
        place.append(failure(error));
    }
    waiting.remove();
}

// The picture of an image, or what keeps the service from drawing it: one that is partial has none.
async function picture(service, name) {
    try {
        const svg = await service.text(`${imagePath(name)}/picture`);
        return element("img", {
            class: "picture",
            src: `data:image/svg+xml,${encodeURIComponent(svg)}`,
            alt: "The RAM blocks with their used pages, and how long runs of used pages are",
        });
    } catch (error) {
        return failure(error);
    }
}

function facts(found) {
    const rows = [
        ["Guest", `${found.guest ?? "unknown"} (${found.run_state ?? "unknown run state"})`],
        ["State", found.state + (found.pinned ? ", pinned" : "")],
        ["Saved", found.started ? moment(found.started) : "unknown"],
        ["Note", found.note],
        ["Format", found.format],
        ["QEMU", found.qemu?.version],
        ["Machine", found.machine],
        ["RAM", found.ram_bytes === undefined ? null : size(found.ram_bytes)],
        ["File", `${size(found.file_bytes)}, ${size(found.allocated_bytes)} on disk`],
        ...(found.ram_blocks ?? []).map(block => [
            `RAM block ${block.name}`,
            `${size(block.bytes)}, ${block.used_pages} pages used, ${block.zero_pages} zero`,
        ]),
    ];
    return element("dl", {}, ...rows.filter(([, value]) => value).map(([name, value]) =>
        element("div", {}, element("dt", {}, name), element("dd", {}, built(value)))));
}
