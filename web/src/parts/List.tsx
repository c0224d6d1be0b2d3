import { Button, Paper, Skeleton, Table, TableBody, TableCell, TableContainer, TableHead, TableRow } from "@mui/material";
import { type QueryKey, useInfiniteQuery } from "@tanstack/react-query";
import type { ReactNode } from "react";

import { useTexts } from "../texts";
import { Trouble } from "./Trouble";

export interface Column<Row> {
  title: string;
  cell: (row: Row) => ReactNode;
  numeric?: boolean;
  /** Left out on a phone. */
  wide?: boolean;
}

interface Paged<Row> {
  items: Row[];
  next: string | null;
}

const SKELETON = [0, 1, 2, 3];

/** A table of a list that comes page by page from the service. */
export function List<Row extends { id: string | number }>(props: {
  label: string;
  name: QueryKey;
  load: (cursor: string | undefined) => Promise<Paged<Row>>;
  columns: Column<Row>[];
  empty: ReactNode;
}) {
  const { label, name, load, columns, empty } = props;
  const { t } = useTexts();
  const query = useInfiniteQuery({
    queryKey: name,
    queryFn: ({ pageParam }) => load(pageParam),
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (last) => last.next ?? undefined,
  });
  if (query.error) return <Trouble error={query.error} again={() => void query.refetch()} />;
  const rows = query.data?.pages.flatMap((page) => page.items);
  if (rows?.length === 0) return <>{empty}</>;
  return (
    <>
      <TableContainer component={Paper} variant="outlined">
        <Table size="small" aria-label={label}>
          <TableHead>
            <TableRow>
              {columns.map((column, at) => (
                <TableCell key={at} align={column.numeric ? "right" : "left"} sx={column.wide ? { display: { xs: "none", md: "table-cell" } } : {}}>
                  {column.title}
                </TableCell>
              ))}
            </TableRow>
          </TableHead>
          <TableBody>
            {rows === undefined
              ? SKELETON.map((at) => (
                  <TableRow key={at}>
                    <TableCell colSpan={columns.length}>
                      <Skeleton />
                    </TableCell>
                  </TableRow>
                ))
              : rows.map((row) => (
                  <TableRow key={row.id} hover>
                    {columns.map((column, at) => (
                      <TableCell key={at} align={column.numeric ? "right" : "left"} sx={column.wide ? { display: { xs: "none", md: "table-cell" } } : {}}>
                        {column.cell(row)}
                      </TableCell>
                    ))}
                  </TableRow>
                ))}
          </TableBody>
        </Table>
      </TableContainer>
      {query.hasNextPage && (
        <Button sx={{ mt: 1 }} disabled={query.isFetchingNextPage} onClick={() => void query.fetchNextPage()}>
          {t.loadMore}
        </Button>
      )}
    </>
  );
}
