import { Typography } from "@mui/material";

import { api, data, type Schemas } from "../api/session";
import { List } from "../parts/List";
import { Moment } from "../parts/Moment";
import { Empty, Page } from "../parts/Page";
import { Status } from "../parts/Status";
import { useTexts } from "../texts";

const WORDS: Record<string, string> = { error: "failed", warning: "interrupted", info: "succeeded" };

export default function Inbox() {
  const { t } = useTexts();
  return (
    <Page title={t.inbox}>
      <List<Schemas["NotificationShown"]>
        label={t.inbox}
        name={["inbox"]}
        load={async (cursor) => data(await api.GET("/api/v1/notifications", { params: { query: cursor ? { cursor } : {} } }))}
        empty={<Empty text={t.noNews} />}
        columns={[
          { title: t.kind, cell: (row) => <Status value={WORDS[row.severity] ?? row.severity} /> },
          {
            title: t.what,
            cell: (row) => (
              <>
                <Typography variant="body2" sx={{ fontWeight: row.read_at ? 400 : 650 }}>{row.subject}</Typography>
                <Typography variant="body2" color="text.secondary" sx={{ whiteSpace: "pre-line", overflowWrap: "anywhere" }}>{row.message}</Typography>
              </>
            ),
          },
          { title: t.time, cell: (row) => <Moment at={row.created_at} /> },
        ]}
      />
    </Page>
  );
}
