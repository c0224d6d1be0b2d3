import { api, data, type Schemas } from "../api/session";
import { List } from "../parts/List";
import { Moment } from "../parts/Moment";
import { Empty, Page } from "../parts/Page";
import { useTexts } from "../texts";

export default function Audit() {
  const { t } = useTexts();
  return (
    <Page title={t.audit}>
      <List<Schemas["AuditShown"]>
        label={t.audit}
        name={["audit"]}
        load={async (cursor) => data(await api.GET("/api/v1/audit", { params: { query: cursor ? { cursor } : {} } }))}
        empty={<Empty text={t.none} />}
        columns={[
          { title: t.time, cell: (row) => <Moment at={row.timestamp} exact /> },
          { title: t.action, cell: (row) => row.action },
          { title: t.what, cell: (row) => row.resource_type },
          { title: t.details, wide: true, cell: (row) => Object.entries(row.details).map(([name, value]) => `${name}: ${String(value)}`).join(", ") },
        ]}
      />
    </Page>
  );
}
