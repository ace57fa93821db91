// Dark or light as Cockpit's own pages are: by its switch, which says "auto" for the browser's choice.

const SWITCH = "shell:style";
const browser = window.matchMedia("(prefers-color-scheme: dark)");

function apply(chosen = localStorage.getItem(SWITCH) ?? "auto") {
    const dark = chosen === "dark" || (chosen === "auto" && browser.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
}

export function follow() {
    apply();
    browser.addEventListener("change", () => apply());
    window.addEventListener("storage", event => {
        if (event.key === SWITCH)
            apply();
    });
    window.addEventListener("cockpit-style", event => apply(event.detail.style));
}
