import { Button } from "@mui/material";
import { Link } from "react-router";

import { Empty, Page } from "../parts/Page";
import { useTexts } from "../texts";

export default function Missing() {
  const { t } = useTexts();
  return (
    <Page title="404">
      <Empty text={t.notFound} action={<Button component={Link} to="/">{t.dashboard}</Button>} />
    </Page>
  );
}
