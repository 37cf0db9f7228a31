//! Where one output of a container goes: as records to its log, and as it is to who is attached.

use std::sync::Arc;

use jiff::tz::TimeZone;

use super::{
    Stream,
    cri_log::{CriLog, time_of_record},
    hub::Hub,
    record::{Splitter, append},
};

pub(crate) struct CriSink {
    stream: Stream,
    log: Option<Arc<CriLog>>,
    hub: Arc<Hub>,
    splitter: Splitter,
    zone: TimeZone,
    records: Vec<u8>,
}

impl CriSink {
    /// Without a log, output only reaches who is attached. Lines longer than `max_line` are split.
    pub(crate) fn new(
        stream: Stream,
        log: Option<Arc<CriLog>>,
        hub: Arc<Hub>,
        max_line: usize,
        zone: TimeZone,
    ) -> Self {
        Self { stream, log, hub, splitter: Splitter::new(max_line), zone, records: Vec::new() }
    }

    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.hub.publish(self.stream, bytes);
        let Some(log) = &self.log else { return };
        // One time for all records of a read: they were written at the same moment.
        let time = time_of_record(&self.zone);
        self.splitter.push(bytes, |piece| append(&mut self.records, &time, self.stream, &piece));
        if !self.records.is_empty() {
            log.write(&self.records);
            self.records.clear();
        }
    }

    /// The end of the output: what is left of a line is written. Once; nothing is left then.
    pub(crate) fn finish(&mut self) {
        let Some(log) = &self.log else { return };
        let time = time_of_record(&self.zone);
        self.splitter.finish(|piece| append(&mut self.records, &time, self.stream, &piece));
        if !self.records.is_empty() {
            log.write(&self.records);
            self.records.clear();
        }
    }
}

impl Drop for CriSink {
    fn drop(&mut self) {
        // A daemon that ends drops its copies; what they hold of a line is not in the FIFO any more.
        self.finish();
    }
}
