//! What every snapshotter does, run for each of them.
//!
//! Tests that mount do so on a thread of their own, in a mount namespace that ends with it.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod conformance {
    pub(crate) mod crash;
    pub(crate) mod kit;
    pub(crate) mod layers;
    pub(crate) mod names;
    pub(crate) mod recovery;
}

/// Makes a test of each named function for each snapshotter.
macro_rules! conformance {
    ($($area:ident { $($case:ident)+ })+) => {
        mod overlayfs { $($(
            #[test]
            fn $case() { crate::conformance::$area::$case(crate::conformance::kit::overlayfs) }
        )+)+ }
        mod native { $($(
            #[test]
            fn $case() { crate::conformance::$area::$case(crate::conformance::kit::native) }
        )+)+ }
    };
}

conformance! {
    names {
        a_new_snapshot_is_told_by_stat_and_list
        a_key_is_taken_once
        a_parent_must_be_a_committed_snapshot_of_the_namespace
        namespaces_do_not_see_each_other
        a_committed_snapshot_takes_its_name_and_its_own_labels
        only_an_active_snapshot_is_committed
        a_snapshot_with_a_child_is_not_removed
        what_is_not_there_is_not_found
        mounts_are_told_again_but_not_of_a_layer
    }
    layers {
        usage_counts_what_a_snapshot_adds_and_hard_links_once
        a_removed_snapshot_leaves_no_directory
        the_root_looks_like_its_parents
        privileged_a_chain_shows_the_top_of_each_file
        privileged_two_children_do_not_see_each_other
        privileged_a_view_cannot_be_written
        privileged_everything_about_a_file_is_seen_in_a_child
        privileged_a_hundred_layers_can_be_mounted
    }
    recovery {
        a_sweep_of_a_healthy_root_drops_nothing
        a_sweep_drops_directories_without_rows
        a_sweep_drops_rows_without_directories_and_what_stands_on_them
        a_sweep_drops_what_was_not_finished
        a_layer_not_known_to_be_on_disk_does_not_outlive_its_boot
        a_durable_layer_outlives_its_boot
        a_snapshot_that_could_not_be_made_leaves_nothing
    }
    crash {
        rows_and_directories_agree_after_kill_9
    }
}
