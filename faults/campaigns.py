"""All campaigns by name, in the order they run: the quick ones first."""

from __future__ import annotations

from faults import (
    checkpoints,
    circumstances,
    command_lines,
    contents,
    kills,
    order,
    own_texts,
    prompts,
    saving,
    shards,
    user_files,
    videos,
)
from faults.campaign import Campaign
from faults.planted import planted

CAMPAIGNS: dict[str, Campaign] = {
    campaign.name: campaign
    for campaign in (
        shards.STRICT,
        shards.SKIPPING,
        checkpoints.MUTATED,
        checkpoints.HOSTILE,
        prompts.HOSTILE,
        command_lines.BAD,
        own_texts.CONTENTS,
        videos.BROKEN,
        saving.SAVING,
        user_files.USER_FILES,
        order.CHANGES,
        contents.CHECKPOINTS,
        circumstances.CIRCUMSTANCES,
        kills.KILLS,
        kills.STOPS,
    )
}
CAMPAIGNS["planted"] = planted(CAMPAIGNS)
