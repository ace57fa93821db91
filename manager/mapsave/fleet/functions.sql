-- What agents call. Each acts for the host whose role the session has logged in as, and for no
-- other: session_user does not change within SECURITY DEFINER functions, nor by SET ROLE.
-- pg_temp is named last, so that no temporary table or function is taken for one of ours, and
-- pg_catalog, which is not named, is searched first. clock_timestamp(): now() is when a transaction
-- that waited for a lock began.

CREATE OR REPLACE FUNCTION schema_version() RETURNS integer
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = fleet, pg_temp
    AS $$ SELECT version FROM meta $$;

CREATE OR REPLACE FUNCTION own_host() RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = fleet, pg_temp
    AS $$ SELECT name FROM hosts WHERE role = session_user $$;

CREATE OR REPLACE FUNCTION known_host() RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = fleet, pg_temp
AS $$
DECLARE
    found text := own_host();
BEGIN
    IF found IS NULL THEN
        RAISE EXCEPTION 'the role % is not of a host of this fleet', session_user
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN found;
END;
$$;

-- Where this database is: differs in a copy that was restored elsewhere or under another name, and,
-- by the timeline (of the WAL that is written), in a standby that was promoted.
CREATE OR REPLACE FUNCTION place() RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = fleet, pg_temp
AS $$
    SELECT (SELECT system_identifier FROM pg_control_system()) || '/' || oid || '/'
        || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
    FROM pg_database WHERE datname = current_database()
$$;

-- The moment since which this database is where it is: the start of its server, or the first look
-- at it after it was restored. What was taken before may be in use without its knowledge.
CREATE OR REPLACE FUNCTION here_since() RETURNS timestamptz
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = fleet, pg_temp
AS $$
DECLARE
    found meta;
BEGIN
    SELECT * INTO STRICT found FROM meta;
    IF found.place <> place() THEN
        UPDATE meta SET place = place(), since = clock_timestamp() WHERE meta.place = found.place;
        SELECT * INTO STRICT found FROM meta;
    END IF;
    RETURN greatest(found.since, pg_postmaster_start_time());
END;
$$;

-- Returns how many operations the host may run at once.
CREATE OR REPLACE FUNCTION agent_says(p_version text, p_service jsonb) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = fleet, pg_temp
AS $$
DECLARE
    v_host text := known_host();
    v_saves integer;
BEGIN
    IF length(p_version) > 100 OR octet_length(p_service::text) > 65536 THEN
        RAISE EXCEPTION 'too long' USING ERRCODE = 'program_limit_exceeded';
    END IF;
    PERFORM here_since();
    UPDATE hosts SET last_word = clock_timestamp(), version = p_version, service = p_service
        WHERE name = v_host RETURNING saves INTO v_saves;
    RETURN v_saves;
END;
$$;

-- Replaces the inventory of the host; only what differs is written.
CREATE OR REPLACE FUNCTION agent_lists(p_guests jsonb, p_images jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = fleet, pg_temp
AS $$
DECLARE
    v_host text := known_host();
BEGIN
    IF octet_length(p_guests::text) > 33554432 OR octet_length(p_images::text) > 33554432 THEN
        RAISE EXCEPTION 'too long' USING ERRCODE = 'program_limit_exceeded';
    END IF;
    DELETE FROM guests WHERE host = v_host AND NOT p_guests ? guest;
    INSERT INTO guests AS old (host, guest, facts)
        SELECT v_host, key, value FROM jsonb_each(p_guests)
        ON CONFLICT (host, guest) DO UPDATE SET facts = excluded.facts, seen = now()
        WHERE old.facts IS DISTINCT FROM excluded.facts;
    DELETE FROM images WHERE host = v_host AND NOT p_images ? image;
    INSERT INTO images AS old (host, image, guest, facts)
        SELECT v_host, key, value ->> 'guest', value FROM jsonb_each(p_images)
        ON CONFLICT (host, image) DO UPDATE
        SET facts = excluded.facts, guest = excluded.guest, seen = now()
        WHERE old.facts IS DISTINCT FROM excluded.facts;
END;
$$;

-- The task of the caller's own host, its job and its run; null where there is none.
CREATE OR REPLACE FUNCTION own_task(p_task uuid) RETURNS tasks
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = fleet, pg_temp
AS $$ SELECT * FROM tasks WHERE uuid = p_task AND host = known_host() $$;

-- A slot is given back when its operation was reported, or when its lease and its own time limit
-- have both run out: a host that is cut off may still be writing.
CREATE OR REPLACE FUNCTION free_expired(p_target text, p_host text) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = fleet, pg_temp
AS $$
    DELETE FROM slots
        WHERE (target = p_target OR host = p_host)
        AND lease_until < clock_timestamp() AND limit_until < clock_timestamp()
$$;

-- Why no new slot is given now at all, or null.
CREATE OR REPLACE FUNCTION holding() RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = fleet, pg_temp
AS $$
DECLARE
    v_since timestamptz := here_since();
    v_silent bigint;
BEGIN
    IF clock_timestamp() > v_since + (SELECT lease FROM meta) THEN
        RETURN NULL;
    END IF;
    SELECT count(*) INTO v_silent FROM hosts WHERE last_word < v_since;
    IF v_silent = 0 THEN
        RETURN NULL;
    END IF;
    RETURN format('the database has just started: waiting for word from %s hosts', v_silent);
END;
$$;

CREATE OR REPLACE FUNCTION take_slot(
    p_task uuid, OUT state text, OUT slot integer, OUT bandwidth bigint, OUT why text
)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = fleet, pg_temp
AS $$
DECLARE
    v_host hosts;
    v_task tasks;
    v_job procrastinate_jobs;
    v_run runs;
    v_target targets;
    v_used bigint;
    v_ahead bigint;
BEGIN
    -- The host first, then the target: always in this order, so there is no deadlock. No key is
    -- changed: foreign keys to them may be checked at the same time.
    SELECT * INTO v_host FROM hosts WHERE name = known_host() FOR NO KEY UPDATE;
    v_task := own_task(p_task);
    IF v_task.uuid IS NULL THEN
        -- Who asks has not begun it. A slot that was adopted for it is not needed then.
        PERFORM give_back(p_task, v_host.name);
        state := 'unknown';
        why := 'there is no such task of this host';
        RETURN;
    END IF;
    SELECT * INTO v_job FROM procrastinate_jobs WHERE id = v_task.job_id;
    SELECT * INTO v_run FROM runs WHERE id = v_task.run;
    IF v_task.target IS NOT NULL THEN
        SELECT * INTO v_target FROM targets WHERE name = v_task.target FOR NO KEY UPDATE;
        bandwidth := v_target.bandwidth / greatest(v_target.saves, 1);
    END IF;
    SELECT s.slot INTO slot FROM slots s WHERE s.task = p_task;
    IF slot IS NOT NULL THEN
        state := 'taken';
        RETURN;
    END IF;
    IF v_job.status <> 'doing' THEN
        state := 'settled';
        why := v_job.status;
        RETURN;
    END IF;
    IF v_job.abort_requested OR v_run.cancelled OR v_run.failed >= v_run.max_failures THEN
        state := 'cancelled';
        why := coalesce(v_run.why, 'cancelled');
        RETURN;
    END IF;
    IF v_task.not_after < clock_timestamp() THEN
        state := 'over';
        why := 'window closed';
        RETURN;
    END IF;
    state := 'wait';
    why := holding();
    IF why IS NOT NULL THEN
        RETURN;
    END IF;
    PERFORM free_expired(v_task.target, v_host.name);
    SELECT count(*) INTO v_used FROM slots s WHERE s.host = v_host.name;
    IF v_used >= v_host.saves THEN
        -- It does not stand in line: it would keep others from slots that it cannot take.
        UPDATE tasks SET waiting_since = coalesce(waiting_since, clock_timestamp()), asked = NULL
            WHERE uuid = p_task;
        why := format('this host runs %s of %s', v_used, v_host.saves);
        RETURN;
    END IF;
    IF v_target.name IS NULL THEN
        SELECT coalesce(max(s.slot), 0) + 1 INTO slot
            FROM slots s WHERE s.target IS NULL AND s.host = v_host.name;
    ELSE
        UPDATE tasks SET waiting_since = coalesce(waiting_since, clock_timestamp()),
            asked = clock_timestamp() WHERE uuid = p_task RETURNING * INTO v_task;
        SELECT count(*) INTO v_used FROM slots s WHERE s.target = v_target.name;
        SELECT count(*) INTO v_ahead FROM tasks t
            JOIN procrastinate_jobs j ON j.id = t.job_id AND j.status = 'doing'
            WHERE t.target = v_target.name AND t.waiting_since IS NOT NULL
            AND t.asked > clock_timestamp() - interval '30 s' AND t.uuid <> p_task
            AND (-t.priority, t.waiting_since, t.job_id)
                < (-v_task.priority, v_task.waiting_since, v_task.job_id);
        IF v_used + v_ahead >= v_target.saves THEN
            why := format('%s of %s slots of %s are taken, %s wait before',
                v_used, v_target.saves, v_target.name, v_ahead);
            RETURN;
        END IF;
        SELECT min(n) INTO slot FROM generate_series(1, v_target.saves) AS n
            WHERE NOT EXISTS (
                SELECT FROM slots s WHERE s.target = v_target.name AND s.slot = n);
    END IF;
    PERFORM occupy(v_task, v_task.target, slot, v_task.limit_s);
    UPDATE tasks SET waiting_since = NULL, asked = NULL,
        started = coalesce(started, clock_timestamp()) WHERE uuid = p_task;
    state := 'taken';
END;
$$;

CREATE OR REPLACE FUNCTION occupy(
    p_task tasks, p_target text, p_slot integer, p_limit_s integer
) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = fleet, pg_temp
AS $$
    INSERT INTO slots (task, target, slot, host, operation, lease_until, limit_until)
        SELECT p_task.uuid, p_target, p_slot, p_task.host, p_task.operation,
            clock_timestamp() + lease,
            -- Two minutes more than the operation may take: it is ended, then its host says so.
            clock_timestamp() + make_interval(secs => p_limit_s + 120)
        FROM meta
$$;

-- Records a slot for an operation that runs on the host, whatever the budgets: it does run, and
-- nothing new begins until there is room again. A task that this
-- database does not know (it was restored from an older copy) counts for the host's own target,
-- and only within the host's own budget.
CREATE OR REPLACE FUNCTION adopt_slot(
    p_task uuid, p_target text DEFAULT NULL, p_limit_s integer DEFAULT NULL
) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = fleet, pg_temp
AS $$
DECLARE
    v_host hosts;
    v_task tasks;
    v_slot integer;
BEGIN
    SELECT * INTO v_host FROM hosts WHERE name = known_host() FOR NO KEY UPDATE;
    v_task := own_task(p_task);
    IF v_task.uuid IS NULL THEN
        IF EXISTS (SELECT FROM tasks WHERE uuid = p_task)
            OR (SELECT count(*) FROM slots WHERE host = v_host.name) >= v_host.saves
            OR p_target IS DISTINCT FROM v_host.target
        THEN
            RETURN EXISTS (SELECT FROM slots WHERE task = p_task AND host = v_host.name);
        END IF;
        v_task.uuid := p_task;
        v_task.host := v_host.name;
        v_task.target := v_host.target;
        v_task.operation := substr(encode(sha256(uuid_send(p_task)), 'hex'), 1, 12);
        v_task.limit_s := least(greatest(coalesce(p_limit_s, 3600), 1), 86400);
    END IF;
    IF v_task.target IS NOT NULL THEN
        PERFORM FROM targets WHERE name = v_task.target FOR NO KEY UPDATE;
    END IF;
    IF EXISTS (SELECT FROM slots WHERE task = p_task) THEN
        RETURN true;
    END IF;
    SELECT coalesce(max(slot), 0) + 1 INTO v_slot
        FROM slots WHERE target IS NOT DISTINCT FROM v_task.target;
    PERFORM occupy(v_task, v_task.target, v_slot, v_task.limit_s);
    UPDATE tasks SET waiting_since = NULL, asked = NULL,
        started = coalesce(started, clock_timestamp()) WHERE uuid = p_task AND host = v_host.name;
    RETURN true;
END;
$$;

-- Extends the lease; returns whether the operation is to be cancelled.
CREATE OR REPLACE FUNCTION renew(p_task uuid, p_progress jsonb) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = fleet, pg_temp
AS $$
DECLARE
    v_host text := known_host();
    v_task tasks := own_task(p_task);
BEGIN
    IF octet_length(p_progress::text) > 65536 THEN
        RAISE EXCEPTION 'too long' USING ERRCODE = 'program_limit_exceeded';
    END IF;
    UPDATE slots SET lease_until = clock_timestamp() + (SELECT lease FROM meta)
        WHERE task = p_task AND host = v_host;
    UPDATE tasks SET progress = p_progress
        WHERE uuid = v_task.uuid AND progress IS DISTINCT FROM p_progress;
    RETURN coalesce(
        (SELECT abort_requested FROM procrastinate_jobs WHERE id = v_task.job_id), false);
END;
$$;

-- Tells the hosts of the first that wait for a slot of the target to ask again: as many as slots are
-- free. If only the first were told, and two slots became free at once, one would be left until
-- another host happens to ask.
CREATE OR REPLACE FUNCTION wake_next(p_target text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = fleet, pg_temp
AS $$
DECLARE
    v_host text;
    v_free bigint := (SELECT saves FROM targets WHERE name = p_target)
        - (SELECT count(*) FROM slots WHERE target = p_target);
BEGIN
    FOR v_host IN
        SELECT DISTINCT host FROM (
            SELECT t.host FROM tasks t
            JOIN procrastinate_jobs j ON j.id = t.job_id AND j.status = 'doing'
            WHERE t.target = p_target AND t.waiting_since IS NOT NULL
            AND t.asked > clock_timestamp() - interval '30 s'
            ORDER BY t.priority DESC, t.waiting_since, t.job_id LIMIT greatest(v_free, 1)) AS first
    LOOP
        PERFORM pg_notify('procrastinate_queue_v1#' || v_host,
            json_build_object('type', 'slot_free', 'target', p_target)::text);
    END LOOP;
END;
$$;

-- Cancels what of a run has not begun.
CREATE OR REPLACE FUNCTION stop_run(p_run bigint, p_why text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = fleet, pg_temp
AS $$
BEGIN
    UPDATE runs SET cancelled = true, why = p_why WHERE id = p_run;
    WITH stopped AS (
        UPDATE procrastinate_jobs SET status = 'cancelled' WHERE status = 'todo'
            AND id IN (SELECT job_id FROM tasks WHERE run = p_run) RETURNING id)
    UPDATE tasks SET ended = clock_timestamp(),
        outcome = jsonb_build_object('message', p_why) FROM stopped WHERE job_id = stopped.id;
END;
$$;

CREATE OR REPLACE FUNCTION give_back(p_task uuid, p_host text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = fleet, pg_temp
AS $$
DECLARE
    v_target text;
BEGIN
    DELETE FROM slots WHERE task = p_task AND host = p_host RETURNING target INTO v_target;
    IF v_target IS NOT NULL THEN
        PERFORM wake_next(v_target);
    END IF;
END;
$$;

-- Settles a task and frees its slot, in one transaction. Returns false where it was settled before,
-- or is not known: there is nothing to do then.
CREATE OR REPLACE FUNCTION report(p_task uuid, p_status text, p_outcome jsonb) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = fleet, pg_temp
AS $$
DECLARE
    v_host text := known_host();
    v_task tasks := own_task(p_task);
    v_status procrastinate_job_status;
    v_run runs;
BEGIN
    IF p_status IS NULL OR p_status NOT IN ('succeeded', 'failed', 'aborted') THEN
        RAISE EXCEPTION 'an outcome is succeeded, failed or aborted, not %', p_status
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF octet_length(p_outcome::text) > 1048576 THEN
        RAISE EXCEPTION 'too long' USING ERRCODE = 'program_limit_exceeded';
    END IF;
    PERFORM give_back(p_task, v_host);
    IF v_task.uuid IS NULL THEN
        RETURN false;
    END IF;
    SELECT status INTO v_status FROM procrastinate_jobs WHERE id = v_task.job_id FOR UPDATE;
    IF v_status NOT IN ('todo', 'doing') THEN
        RETURN false;
    END IF;
    PERFORM procrastinate_finish_job_v1(
        v_task.job_id, p_status::procrastinate_job_status, false);
    UPDATE tasks SET ended = clock_timestamp(), outcome = p_outcome, waiting_since = NULL,
        asked = NULL WHERE uuid = p_task;
    IF p_status = 'failed' THEN
        UPDATE runs SET failed = failed + 1 WHERE id = v_task.run RETURNING * INTO v_run;
        IF v_run.failed = v_run.max_failures AND NOT v_run.cancelled THEN
            PERFORM stop_run(v_task.run, format('%s tasks have failed', v_run.failed));
        END IF;
    END IF;
    RETURN true;
END;
$$;

CREATE OR REPLACE FUNCTION notify_request() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = fleet, pg_temp
AS $$
BEGIN
    PERFORM pg_notify('fleet_request', NEW.id::text);
    RETURN NEW;
END;
$$;
DROP TRIGGER IF EXISTS notify_request ON requests;
CREATE TRIGGER notify_request AFTER INSERT ON requests
    FOR EACH ROW EXECUTE FUNCTION notify_request();
