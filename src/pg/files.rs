//! Files as they were given.

use crate::core::error::{Error, Result};
use crate::pg::report::Reported;
use crate::pg::{owner, searching, spi};
use pgrx::Uuid;
use pgrx::prelude::*;

/// `helper.file_text`: whoever may see a document may see its bytes, which only the owner can read.
#[pg_extern(sql = false, stable, parallel_unsafe)]
fn file_text(document_id: Option<Uuid>, workspace: Option<Uuid>) -> Reported<String> {
    owner::check_is_caller()?;
    let workspace = searching::workspace(workspace)?;
    let document = document_id.ok_or_else(|| Error::bad_argument("document_id is null"))?;
    let unknown = || Error::unknown_object(format!("document \"{document}\" does not exist"));
    let seen = spi::first(
        "select s.content from helper.knowledge_sources s \
         where s.workspace_id operator(pg_catalog.=) $1 and s.id operator(pg_catalog.=) $2",
        &[workspace.into(), document.into()],
        |row| row.opt::<String>(1),
    )?;
    let content = seen.ok_or_else(unknown)?;
    match (bytes(workspace, document)?, content) {
        (Some(bytes), _) => {
            Ok(String::from_utf8(bytes).map_err(|_| Error::bad_argument("the file is not a text in UTF-8"))?)
        }
        (None, Some(content)) => Ok(content),
        (None, None) => Err(Error::bad_argument("the document has no content").into()),
    }
}

fn bytes(workspace: Uuid, document: Uuid) -> Result<Option<Vec<u8>>> {
    owner::as_owner(|| {
        spi::first(
            "select i.content from helper.knowledge_inputs i where i.workspace_id = $1 and i.source_id = $2",
            &[workspace.into(), document.into()],
            |row| row.get::<Vec<u8>>(1),
        )
    })
}
