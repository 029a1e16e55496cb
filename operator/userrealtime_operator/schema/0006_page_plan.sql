-- One plan for all pages: made anew for each, it took longer than reading the few events of most.
alter function userrealtime.page(text, bigint, int, int) set plan_cache_mode = force_generic_plan;
