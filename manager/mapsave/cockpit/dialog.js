// One dialog at a time: a question before something is done, or what an image holds.

import { built, element, failure, focusIn, focusTitle } from "./dom.js";

// Ask for something. `fields` are named and have a label; of a choice the `options`, of a tick the
// `must`, whether nothing is done without it. `send(values)` does what was asked for; a Failure of
// it is shown in the dialog, which stays. `button` says what will be done, in words.
export function ask({ title, parts, fields = [], button, harm = false, send }) {
    const refused = element("div", { role: "alert" });
    const agree = element("button", { type: "submit", class: harm ? "harm" : "main" }, button);
    const form = element("form", {},
        ...parts.map(part => element("p", {}, built(part))),
        ...fields.map(field),
        refused,
        element("div", { class: "buttons" }, agree, closing("Do nothing")));
    form.addEventListener("submit", async event => {
        event.preventDefault();
        agree.disabled = true;
        refused.replaceChildren();
        try {
            await send(values(form, fields));
            dialog.close();
        } catch (error) {
            refused.append(failure(error));
            agree.disabled = false;
            agree.focus();
        }
    });
    const dialog = open(title, form);
}

// Show something; return the place in the dialog where more can be added.
export function look(title, ...children) {
    const place = element("div", {}, ...children);
    open(title, place, element("div", { class: "buttons" }, closing("Close")));
    return place;
}

function open(title, ...children) {
    const before = document.activeElement;
    const [row, section] = [before.closest("tr"), before.closest("section")];
    const dialog = element("dialog", { "aria-labelledby": "dialog-title" },
        element("h2", { id: "dialog-title" }, title), ...children);
    dialog.addEventListener("click", event => {
        if (event.target.closest("[data-close], [data-act]") !== null)
            dialog.close();
    });
    dialog.addEventListener("close", () => {
        dialog.remove();
        // The button may be another one by now, or be gone with its row.
        if (row?.isConnected)
            focusIn(row, before.dataset.act);
        else if (section !== null && row === null && before.isConnected)
            before.focus();
        else if (section !== null)
            focusTitle(section);
    });
    document.body.append(dialog);
    dialog.showModal();
    return dialog;
}

const closing = label => element("button", { type: "button", "data-close": true }, label);

function field({ name, label, options, must, value, hint }) {
    if (options)
        return element("fieldset", {}, element("legend", {}, label),
            ...options.map(([choice, words]) => element("label", {},
                element("input", { type: "radio", name, value: choice, checked: choice === value }),
                words)));
    if (must !== undefined)
        return element("label", { class: "tick" },
            element("input", { type: "checkbox", name, required: must }), label);
    return element("label", { class: "text" }, label,
        element("input", { type: "text", name, placeholder: hint, autocomplete: "off" }));
}

// Return what was filled in: a text that was left empty is not given.
function values(form, fields) {
    const found = {};
    for (const { name, must } of fields) {
        const input = form.elements[name];
        if (must !== undefined)
            found[name] = input.checked;
        else if (input.value !== "")
            found[name] = input.value;
    }
    return found;
}
