import { Link, MenuItem, TextField } from "@mui/material";
import { Link as To, useSearchParams } from "react-router";

import { useNews } from "../api/live";
import { api, data, type Schemas } from "../api/session";
import { List } from "../parts/List";
import { Moment } from "../parts/Moment";
import { Empty, Page } from "../parts/Page";
import { Progress, Status } from "../parts/Status";
import { useTexts } from "../texts";

type Job = Schemas["JobShown"];
const STATES = ["queued", "running", "succeeded", "succeeded with warnings", "failed", "cancelled", "interrupted"];

export default function Jobs() {
  const { t } = useTexts();
  const { news } = useNews();
  const [search, setSearch] = useSearchParams();
  const status = search.get("status") ?? "";
  return (
    <Page
      title={t.jobs}
      actions={
        <TextField select size="small" label={t.status} value={status} sx={{ minWidth: 160 }} onChange={(event) => { setSearch(event.target.value ? { status: event.target.value } : {}); }}>
          <MenuItem value="">{t.all}</MenuItem>
          {STATES.map((state) => (
            <MenuItem key={state} value={state}>{state}</MenuItem>
          ))}
        </TextField>
      }
    >
      <List<Job>
        label={t.jobs}
        name={["jobs", "list", status]}
        load={async (cursor) => data(await api.GET("/api/v1/jobs", { params: { query: { ...(cursor ? { cursor } : {}), ...(status ? { status } : {}) } } }))}
        empty={<Empty text={t.noJobs} />}
        columns={[
          { title: t.what, cell: (job) => <Link component={To} to={`/jobs/${job.id}`}>{job.title || job.type}</Link> },
          { title: t.status, cell: (job) => <Status value={news[job.id]?.status ?? job.status} /> },
          { title: t.progress, wide: true, cell: (job) => (job.status === "running" ? <Progress progress={news[job.id]?.progress ?? job.progress} /> : (job.error ?? "")) },
          { title: t.started, cell: (job) => <Moment at={job.started_at ?? job.created_at} /> },
        ]}
      />
    </Page>
  );
}
