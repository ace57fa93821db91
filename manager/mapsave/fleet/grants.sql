-- Who may do what; run after each change of the schema, Procrastinate's included. {agents} and
-- {people} are the roles of meta. Whoever is in neither, PUBLIC, may do nothing.

REVOKE ALL ON DATABASE {database} FROM PUBLIC;
REVOKE ALL ON SCHEMA fleet FROM PUBLIC, {agents}, {people};
REVOKE ALL ON ALL TABLES IN SCHEMA fleet FROM PUBLIC, {agents}, {people};
REVOKE ALL ON ALL SEQUENCES IN SCHEMA fleet FROM PUBLIC, {agents}, {people};
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA fleet FROM PUBLIC, {agents}, {people};

-- Not TEMPORARY: there is nothing they need to create.
GRANT CONNECT ON DATABASE {database} TO {agents}, {people};
GRANT USAGE ON SCHEMA fleet TO {agents}, {people};

-- Agents: what their host's queue has, and no change to it but to take what is due.
ALTER TABLE procrastinate_jobs ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS agents_read ON procrastinate_jobs;
DROP POLICY IF EXISTS agents_take ON procrastinate_jobs;
DROP POLICY IF EXISTS people_read ON procrastinate_jobs;
CREATE POLICY agents_read ON procrastinate_jobs FOR SELECT TO {agents}
    USING (queue_name = (SELECT own_host()));
CREATE POLICY agents_take ON procrastinate_jobs FOR UPDATE TO {agents}
    USING (queue_name = (SELECT own_host()) AND status = 'todo'
        AND (scheduled_at IS NULL OR scheduled_at <= now()))
    WITH CHECK (queue_name = (SELECT own_host()) AND status = 'doing');
CREATE POLICY people_read ON procrastinate_jobs FOR SELECT TO {people} USING (true);
GRANT SELECT, UPDATE (status, worker_id) ON procrastinate_jobs TO {agents};

ALTER TABLE procrastinate_workers ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS agents_own ON procrastinate_workers;
CREATE POLICY agents_own ON procrastinate_workers TO {agents}
    USING (owner = session_user) WITH CHECK (owner = session_user);
GRANT SELECT, DELETE, INSERT (last_heartbeat), UPDATE (last_heartbeat)
    ON procrastinate_workers TO {agents};

GRANT EXECUTE ON FUNCTION own_host(), agent_says(text, jsonb), agent_lists(jsonb, jsonb),
    take_slot(uuid), adopt_slot(uuid, text, integer), renew(uuid, jsonb), report(uuid, text, jsonb)
    TO {agents};

GRANT EXECUTE ON FUNCTION schema_version() TO {agents}, {people};

-- Procrastinate's trigger writes its event as its caller otherwise, who would need the right to
-- write events. Its own schema sets no search_path.
ALTER FUNCTION procrastinate_trigger_function_status_events_update_v1()
    SECURITY DEFINER SET search_path = fleet, pg_temp;

-- Procrastinate numbers its functions by version.
DO $$
DECLARE
    found record;
BEGIN
    FOR found IN SELECT oid::regprocedure AS signature FROM pg_proc
        WHERE pronamespace = 'fleet'::regnamespace AND proname ~
            '^procrastinate_(fetch_job|register_worker|unregister_worker|update_heartbeat)_v[0-9]+$'
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', found.signature, {agents_literal});
    END LOOP;
END;
$$;

-- People: see everything of the fleet, and ask.
GRANT SELECT ON meta, targets, hosts, guests, images, runs, tasks, slots, requests, job_clock, term,
    procrastinate_jobs, procrastinate_events TO {people};
GRANT INSERT (kind, what) ON requests TO {people};
ALTER TABLE requests ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS people_own ON requests;
DROP POLICY IF EXISTS people_ask ON requests;
CREATE POLICY people_own ON requests FOR SELECT TO {people} USING (requested_by = session_user);
CREATE POLICY people_ask ON requests FOR INSERT TO {people}
    WITH CHECK (requested_by = session_user AND answered IS NULL);
