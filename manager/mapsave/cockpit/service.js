// Speaks to mapsaved over its unix socket, through Cockpit's bridge: so the service sees the user who
// is logged in, or root where that user has turned on Cockpit's administrative access.

const HOST = { superuser: "try" };
const UNREACHABLE = ["not-found", "connection-refused", "timeout", "terminated", "internal-error"];
const LONGEST_ERROR = 300; // characters of an answer that is not the service's

// What went wrong. `id` and `hint` are the service's, and null where it has not answered.
export class Failure extends Error {
    constructor({ id = null, message, hint = null, status = null, denied = false, unreachable = false }) {
        super(message);
        Object.assign(this, { id, hint, status, denied, unreachable });
    }
}

export class Service {
    constructor(socket) {
        this.socket = socket;
        this.http = cockpit.http(socket, { ...HOST });
    }

    async get(path, params = {}) {
        return JSON.parse(await this.text(path, params));
    }

    text(path, params = {}) {
        return this._ask({ method: "GET", path, params, body: "" });
    }

    // Begin an operation, which gets the id `id`.
    begin(id, request) {
        const headers = { "Content-Type": "application/json", "Mapsave-Operation": id };
        return this._ask({ method: "POST", path: "/v1/operations", headers, body: JSON.stringify(request) });
    }

    cancel(id) {
        return this._ask({ method: "POST", path: `/v1/operations/${id}/cancel`, body: "" });
    }

    // Call `heard(kind, data)` for each event, `ended(failure)` once there will be no more, and
    // `begun()` once no event is missed any more. Return what stops it.
    //
    // Over a plain stream, for cockpit.http does not notice the end of an answer that has no length
    // (Cockpit 287); HTTP/1.0, for the answer to come without chunks.
    listen({ heard, begun, ended }) {
        const channel = cockpit.channel({ payload: "stream", unix: this.socket, binary: true, ...HOST });
        const decoder = new TextDecoder();
        let head = null;
        let rest = "";
        channel.addEventListener("message", (_, bytes) => {
            rest += decoder.decode(bytes, { stream: true });
            const wasHead = head === null;
            if (wasHead && rest.includes("\r\n\r\n")) {
                const at = rest.indexOf("\r\n\r\n");
                [head, rest] = [rest.slice(0, at), rest.slice(at + 4)];
            }
            if (head === null || statusOf(head) !== 200)
                return;
            if (wasHead)
                begun();
            const events = rest.split("\n\n");
            rest = events.pop();
            for (const event of events)
                hear(event, heard);
        });
        channel.addEventListener("close", (_, { problem }) => {
            const status = head === null ? 200 : statusOf(head);
            ended(this._failure(status === 200 ? { problem } : { status }, rest));
        });
        channel.send(new TextEncoder().encode("GET /v1/events HTTP/1.0\r\n\r\n"));
        return () => channel.close();
    }

    _ask(request) {
        return new Promise((resolve, reject) => {
            this.http.request(request).then(
                resolve,
                (error, body) => reject(this._failure(error, body))
            );
        });
    }

    _failure(error, body) {
        if (error?.status)
            return new Failure({ ...answered(body), status: error.status });
        const problem = error?.problem ?? "terminated";
        if (problem === "access-denied")
            return new Failure({
                message: `You may not connect to ${this.socket}.`,
                hint: "Ask root for the mode of the socket: it should be 0666, for the service decides who may do what",
                denied: true,
            });
        return new Failure({
            message: UNREACHABLE.includes(problem)
                ? `The service does not answer at ${this.socket}.`
                : `The service cannot be asked: ${problem}.`,
            unreachable: true,
        });
    }
}

// An id for an operation: 12 hexadecimal digits.
export function newId() {
    const bytes = crypto.getRandomValues(new Uint8Array(6));
    return Array.from(bytes, each => each.toString(16).padStart(2, "0")).join("");
}

export const imagePath = image => `/v1/images/${encodeURIComponent(image)}`;

const statusOf = head => Number(head.split(" ")[1]);

function hear(event, heard) {
    const fields = Object.fromEntries(
        event.split("\n").filter(line => !line.startsWith(":")).map(line => {
            const at = line.indexOf(": ");
            return [line.slice(0, at), line.slice(at + 2)];
        })
    );
    if (fields.data)
        heard(fields.event, JSON.parse(fields.data));
}

function answered(body) {
    try {
        return JSON.parse(body).error;
    } catch {
        return { message: String(body).slice(0, LONGEST_ERROR) };
    }
}
